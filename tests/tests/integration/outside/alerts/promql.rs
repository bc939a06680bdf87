//! Which metrics and labels an expression of Prometheus names. promtool tells whether it is one at all.

use std::{iter::Peekable, str::Chars};

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Metrics, each with the labels that it is selected by.
    pub metrics: Vec<(String, Vec<String>)>,
    /// Labels that it groups or matches by.
    pub labels: Vec<String>,
}

/// Words that are followed by a list of labels.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Other words that are neither a metric nor a function.
const WORDS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "inf", "nan"];

/// Reads an expression that is valid.
pub fn uses(expression: &str) -> Uses {
    let mut uses = Uses::default();
    let mut rest = expression.chars().peekable();
    while let Some(next) = rest.peek().copied() {
        match next {
            '"' | '\'' | '`' => skip_text(&mut rest),
            // A range, a number or a duration.
            '[' => drop(rest.by_ref().find(|c| *c == ']')),
            c if c.is_ascii_digit() => drop(word(&mut rest)),
            c if is_name(c) => {
                let name = word(&mut rest);
                skip_space(&mut rest);
                let after = rest.peek().copied();
                let lower = name.to_ascii_lowercase();
                if LISTS.contains(&lower.as_str()) {
                    if after == Some('(') {
                        uses.labels.extend(names_until(&mut rest, ')'));
                    }
                } else if after == Some('{') {
                    uses.metrics.push((name, names_until(&mut rest, '}')));
                } else if after != Some('(') && !WORDS.contains(&lower.as_str()) && !is_grouped(&rest) {
                    uses.metrics.push((name, Vec::new()));
                }
            }
            _ => drop(rest.next()),
        }
    }
    uses
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

fn word(rest: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::new();
    while let Some(c) = rest.next_if(|c| is_name(*c) || (*c == '.' && word.starts_with(|c: char| c.is_ascii_digit()))) {
        word.push(c);
    }
    word
}

/// Whether the word before was an aggregation: its grouping may come before what it aggregates.
fn is_grouped(rest: &Peekable<Chars<'_>>) -> bool {
    let next: String = rest.clone().take_while(|c| is_name(*c)).collect();
    matches!(next.to_ascii_lowercase().as_str(), "by" | "without")
}

fn skip_space(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|c| c.is_whitespace()).is_some() {}
}

fn skip_text(rest: &mut Peekable<Chars<'_>>) {
    let quote = rest.next();
    while let Some(c) = rest.next() {
        match c {
            '\\' => drop(rest.next()),
            c if Some(c) == quote => return,
            _ => {}
        }
    }
}

/// The names in a list or a selector, up to its end.
fn names_until(rest: &mut Peekable<Chars<'_>>, end: char) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(c) = rest.peek().copied() {
        match c {
            '"' | '\'' | '`' => skip_text(rest),
            c if c == end => {
                rest.next();
                break;
            }
            c if is_name(c) => names.push(word(rest)),
            _ => drop(rest.next()),
        }
    }
    names
}

#[test]
fn expressions_are_taken_apart() {
    let found = uses(
        r#"sum by (service, le) (rate(a_bucket{kind=~"x|}y",le!="0.5"}[5m])) / on (job) group_left () (b offset 30m > 0.5e3) unless up"#,
    );
    let metric = |name: &str, labels: &[&str]| (name.to_owned(), labels.iter().map(|l| (*l).to_owned()).collect());
    assert_eq!(found.metrics, [metric("a_bucket", &["kind", "le"]), metric("b", &[]), metric("up", &[])]);
    assert_eq!(found.labels, ["service", "le", "job"]);
}
