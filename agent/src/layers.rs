//! What may import what: a layer imports itself and the layers before it in the list. And no two types share a name. The
//! tests follow the modules of a crate as the compiler does, without what is compiled for tests alone.

use std::{fs, path::Path};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// In the order of docs/architecture.md. `allocator` stands beside them: it imports nothing.
const LAYERS: [&str; 15] = [
    "model",
    "host",
    "settings",
    "control",
    "source",
    "plan",
    "kernel",
    "view",
    "probe",
    "telemetry",
    "engine",
    "http",
    "daemon",
    "cli",
    "fuzz",
];

/// A module that names something of another one: where, and which layer that is in.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    /// The module, from the root of the crate.
    by: Vec<String>,
    line: usize,
    layer: String,
}

impl Import {
    fn is_upward(&self) -> bool {
        let height = |layer: &str| LAYERS.iter().position(|known| *known == layer);
        match (self.by.first().and_then(|layer| height(layer)), height(&self.layer)) {
            (Some(own), Some(other)) => other > own,
            // The root, and names that it exports.
            (None, _) | (_, None) => false,
        }
    }
}

/// Reads a module and those that it declares in files of their own.
#[derive(Default)]
struct Reader {
    imports: Vec<Import>,
    /// Modules whose text is in another file.
    declared: Vec<Vec<String>>,
    /// Names of structures, enumerations and traits.
    types: Vec<String>,
}

impl Reader {
    fn read(&mut self, module: &[String], tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let rest = &tokens[at..];
            at += match token {
                TokenTree::Punct(_) if is_test_only(rest) => item_length(rest),
                TokenTree::Ident(word) if word == "mod" => self.module(module, rest),
                TokenTree::Ident(word) if ["struct", "enum", "trait", "union"].iter().any(|kind| word == kind) => {
                    if let Some(TokenTree::Ident(name)) = rest.get(1) {
                        self.types.push(name.to_string());
                    }
                    1
                }
                TokenTree::Ident(word) if word == "crate" || word == "super" => self.path(module, module.len(), rest),
                TokenTree::Group(group) => {
                    self.read(module, group.stream());
                    1
                }
                _ => 1,
            };
        }
    }

    /// `mod name;` or `mod name { ... }`. Returns how many tokens that is.
    fn module(&mut self, parent: &[String], tokens: &[TokenTree]) -> usize {
        let [_, TokenTree::Ident(name), body, ..] = tokens else { return 1 };
        let module = [parent, &[name.to_string()]].concat();
        match body {
            TokenTree::Group(group) => self.read(&module, group.stream()),
            _ => self.declared.push(module),
        }
        3
    }

    /// `crate::a`, `crate::{a, b}`, `super::super::a`, read from a module that is `depth` below the root. Returns how many
    /// tokens the beginning is.
    fn path(&mut self, module: &[String], mut depth: usize, tokens: &[TokenTree]) -> usize {
        let mut at = 0;
        loop {
            match tokens.get(at) {
                // The word and the two colons.
                Some(TokenTree::Ident(word)) if word == "crate" => (depth, at) = (0, at + 3),
                Some(TokenTree::Ident(word)) if word == "super" => (depth, at) = (depth.saturating_sub(1), at + 3),
                Some(TokenTree::Ident(word)) if depth == 0 => {
                    let (by, line) = (module.to_vec(), word.span().start().line);
                    self.imports.push(Import { by, line, layer: word.to_string() });
                    return at;
                }
                Some(TokenTree::Group(group)) => {
                    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
                    for path in inside.split(is_comma) {
                        self.path(module, depth, path);
                    }
                    return at + 1;
                }
                _ => return at,
            }
        }
    }
}

/// Whether `#[cfg(test)]` stands here.
fn is_test_only(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] = tokens else { return false };
    hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)"
}

/// How many tokens an item has: it ends with a semicolon or with braces.
fn item_length(tokens: &[TokenTree]) -> usize {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Punct(mark) => mark.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    };
    tokens.iter().position(is_end).map_or(tokens.len(), |end| end + 1)
}

/// Everything in the modules of a crate beside this one, and how many modules these are.
fn read_crate(name: &str) -> (Reader, usize) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(name).join("src");
    let mut reader = Reader::default();
    let mut modules = 0;
    let mut next = Some(Vec::new());
    while let Some(module) = next {
        let place = module.iter().fold(sources.clone(), |place, name| place.join(name));
        let file = match module.as_slice() {
            [] if place.join("lib.rs").exists() => place.join("lib.rs"),
            [] => place.join("main.rs"),
            _ if place.with_extension("rs").exists() => place.with_extension("rs"),
            _ => place.join("mod.rs"),
        };
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        reader.read(&module, text.parse().unwrap());
        modules += 1;
        next = reader.declared.pop();
    }
    (reader, modules)
}

#[test]
fn no_layer_imports_a_higher_one() {
    let (Reader { imports, .. }, modules) = read_crate("agent");
    assert!(modules > LAYERS.len() && imports.len() > modules, "{modules} modules with {} imports", imports.len());
    let upward = imports.iter().filter(|import| import.is_upward());
    let upward: Vec<String> =
        upward.map(|Import { by, line, layer }| format!("{}, line {line}, imports {layer}", by.join("::"))).collect();
    assert!(upward.is_empty(), "the order is {LAYERS:?}:\n{}", upward.join("\n"));
}

#[test]
fn no_two_types_share_a_name() {
    let mut types: Vec<String> = ["agent", "common", "ebpf"].iter().flat_map(|name| read_crate(name).0.types).collect();
    // The same thing in a document and in a table.
    types.retain(|name| name != "Balance");
    types.sort_unstable();
    let twice: Vec<_> = types.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    assert!(types.len() > 400 && twice.is_empty(), "of {} types, these share a name: {twice:?}", types.len());
}

#[test]
fn every_module_of_the_root_is_a_layer() {
    let mut reader = Reader::default();
    reader.read(&[], include_str!("lib.rs").parse().unwrap());
    let mut declared: Vec<&str> = reader.declared.iter().map(|module| module[0].as_str()).collect();
    declared.retain(|name| *name != "allocator");
    let mut layers = LAYERS;
    layers.sort_unstable();
    declared.sort_unstable();
    assert_eq!(declared, layers, "a layer and its place in the order");
}

#[test]
fn imports_are_seen_in_every_form() {
    let seen = |module: &[&str], text: &str| -> Vec<String> {
        let mut reader = Reader::default();
        let module: Vec<String> = module.iter().map(|&name| name.to_owned()).collect();
        reader.read(&module, text.parse().unwrap());
        reader.imports.into_iter().filter(Import::is_upward).map(|import| import.layer).collect()
    };
    let plan = ["plan", "order"];
    assert_eq!(seen(&plan, "use crate::http::App;"), ["http"]);
    assert_eq!(
        seen(&plan, "use crate::{\n    model::{Name, engine}, kernel,\n    view::share::Share};"),
        ["kernel", "view"]
    );
    assert_eq!(seen(&plan, "fn f() -> u8 { g([crate::cli::run()]) }"), ["cli"]);
    assert_eq!(seen(&plan, "use super::{super::engine::Handle, op};"), ["engine"]);
    assert_eq!(seen(&plan, "mod inner { use super::super::super::engine; use super::super::view; }"), ["engine"]);
    assert_eq!(seen(&plan, "pub(crate) fn f() { super::view(); }"), [""; 0]);
    assert_eq!(seen(&plan, "// crate::http\n/// [`crate::http`]\nconst TEXT: &str = \"crate::http\";"), [""; 0]);
    let mixed = "#[cfg(test)]\n#[allow(unused)]\nmod tests { use crate::http; }\n#[cfg(test)]\nuse crate::cli;\nuse crate::view;";
    assert_eq!(seen(&plan, mixed), ["view"], "what is compiled for tests alone may look up");
    assert_eq!(seen(&["cli"], "use crate::http;"), [""; 0]);
}
