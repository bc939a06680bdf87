//! YAML text to values. Long files are read by several threads, a run of documents each: a configuration of 10,000
//! services takes one thread over a second.

use std::thread;

use serde_json::Value;

use super::{Refusal, parallel};

/// Most YAML nodes of one file: more than 4 MiB of the densest text hold.
const MAX_NODES: usize = 2_000_000;
/// Bytes from which on it pays to share the work.
const LONG: usize = 1 << 18;

/// All documents of a text, in its order; no more than about `most`.
///
/// # Errors
/// When it is not UTF-8, or not YAML; with the line.
pub fn values(bytes: &[u8], most: usize) -> Result<Vec<Value>, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Refusal::malformed(format!("this is not text in UTF-8: see byte {}", error.valid_up_to() + 1))
    })?;
    let parts = parts(text, thread::available_parallelism().map_or(1, usize::from));
    if parts.len() < 2 {
        return read(text, most);
    }
    let values: Result<Vec<_>, Refusal> = parallel::map(parts, 1, |part| read(part, most)).into_iter().collect();
    match values {
        Ok(values) => Ok(values.into_iter().flatten().collect()),
        // Once more in one piece: the line in the message counts from the top, and directives before `---` are at home.
        Err(_) => read(text, most),
    }
}

fn read(text: &str, most: usize) -> Result<Vec<Value>, Refusal> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * MAX_NODES,
            max_nodes: MAX_NODES,
            // No document needs them, and a few lines of them stand for gigabytes.
            max_anchors: 0,
            max_aliases: 0,
            max_documents: most + 1,
        },
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Refusal::malformed(format!("this is not YAML: {}", error.without_snippet())))
}

/// Cuts a long text before documents, into about `most` parts of the same length. A line that begins with `---` is the
/// beginning of a document wherever it stands: no scalar may hold one (YAML 1.2.2, 9.1.2).
fn parts(text: &str, most: usize) -> Vec<&str> {
    const MARK: &str = "\n---\n";
    let length = (text.len() / most.max(1)).max(LONG);
    let (mut parts, mut rest) = (Vec::new(), text);
    while rest.len() > length {
        // Bytes, because the place that is looked at first may be inside a character.
        let found = rest.as_bytes()[length..].windows(MARK.len()).position(|window| window == MARK.as_bytes());
        let Some((part, after)) = found.and_then(|at| rest.split_at_checked(length + at + 1)) else { break };
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(documents: usize) -> String {
        (0..documents).map(|number| format!("---\nname: s{number}\nnote: |\n  a line\n  ä --- b\n")).collect()
    }

    #[test]
    fn parts_are_the_text_cut_before_documents() {
        let text = text(40_000);
        for most in 1..9 {
            let parts = parts(&text, most);
            assert!(parts.len() <= most && (most < 3 || parts.len() > 1), "{most}: {}", parts.len());
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|part| part.starts_with("---\n")));
        }
        assert_eq!(parts("a: 1\n---\nb: 2\n", 8).len(), 1);
    }

    #[test]
    fn many_threads_read_what_one_reads() {
        let text = text(10_000);
        let values = values(text.as_bytes(), 10_000).unwrap();
        assert_eq!(values, read(&text, 10_000).unwrap());
        assert_eq!(values.len(), 10_000);
    }

    #[test]
    fn anchors_are_refused() {
        let refusal = values(b"a: &a [x, x]\nb: [*a, *a]\n", 1).unwrap_err();
        assert!(refusal.message.contains("this is not YAML"), "{refusal}");
    }

    #[test]
    fn a_mistake_is_told_with_its_line_from_the_top() {
        let mut text = text(9_999);
        let line = text.lines().count() + 2;
        text.push_str("---\nname: [\n");
        let refusal = values(text.as_bytes(), 10_000).unwrap_err();
        assert!(refusal.message.contains(&format!("line {line}")), "{refusal}");
    }
}
