//! Filters of lists, in the simple form of Google's AIP-160: `FIELD = VALUE`, `FIELD != VALUE`, and AND.

use crate::wire::status::Failure;

/// Terms in a filter.
const MOST_TERMS: usize = 16;

/// Which entries of a list are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    is_negated: bool,
    value: String,
}

impl Filter {
    /// A filter over the fields that are `known`; an empty text lets everything pass.
    ///
    /// # Errors
    /// A violation of `filter`.
    pub(crate) fn parse(text: &str, known: &[&str]) -> Result<Self, Failure> {
        let mut rest = words(text)?.into_iter();
        let mut terms = vec![];
        while let Some(field) = rest.next() {
            let (operator, value) = (rest.next(), rest.next());
            let term = term(field, operator, value).ok_or_else(|| malformed(text))?;
            if !known.contains(&term.field.as_str()) {
                let known = known.join(", ");
                let problem = format!("has no field \"{}\"; it has {known}", term.field);
                return Err(Failure::field("filter", problem));
            }
            terms.push(term);
            match rest.next() {
                None => break,
                Some(Word::Bare(and)) if and == "AND" && rest.len() > 0 => {}
                Some(_) => return Err(malformed(text)),
            }
        }
        if terms.len() > MOST_TERMS {
            let problem = format!("has {} terms, at most {MOST_TERMS} are taken", terms.len());
            return Err(Failure::field("filter", problem));
        }
        Ok(Self(terms))
    }

    /// Whether an entry is wanted, by the values of its fields.
    pub(crate) fn admits(&self, value_of: impl Fn(&str) -> String) -> bool {
        let holds = |term: &Term| (value_of(&term.field) == term.value) != term.is_negated;
        self.0.iter().all(holds)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Bare(String),
    Quoted(String),
    Equal,
    Unequal,
}

fn term(field: Word, operator: Option<Word>, value: Option<Word>) -> Option<Term> {
    let Word::Bare(field) = field else {
        return None;
    };
    let is_negated = match operator? {
        Word::Equal => false,
        Word::Unequal => true,
        Word::Bare(_) | Word::Quoted(_) => return None,
    };
    let (Word::Bare(value) | Word::Quoted(value)) = value? else {
        return None;
    };
    Some(Term {
        field,
        is_negated,
        value,
    })
}

fn malformed(text: &str) -> Failure {
    let problem =
        format!("{text:?} must be terms FIELD = VALUE or FIELD != VALUE with AND between");
    Failure::field("filter", problem)
}

fn words(text: &str) -> Result<Vec<Word>, Failure> {
    let mut words = vec![];
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '"' => quoted(rest).ok_or_else(|| malformed(text))?,
            '=' => (Word::Equal, &rest[1..]),
            '!' => (
                Word::Unequal,
                rest.strip_prefix("!=").ok_or_else(|| malformed(text))?,
            ),
            _ => {
                let ends = |c: char| c.is_whitespace() || matches!(c, '=' | '!' | '"');
                let (word, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
                (Word::Bare(word.to_owned()), after)
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

/// A word in double quotes, in which a backslash takes the next character as it is.
fn quoted(text: &str) -> Option<(Word, &str)> {
    let mut word = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((Word::Quoted(word), &text[at + 1..])),
            '\\' => word.push(characters.next()?.1),
            c => word.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admits(filter: &str) -> bool {
        let filter = Filter::parse(filter, &["kind", "name", "count"]).unwrap();
        filter.admits(|field| match field {
            "kind" => "cart_pole".to_owned(),
            "name" => "say \"x\"".to_owned(),
            _ => "4".to_owned(),
        })
    }

    #[test]
    fn an_entry_passes_when_every_term_holds() {
        assert!(admits("") && admits("  "));
        assert!(admits("kind = cart_pole") && admits("kind=\"cart_pole\"AND count=4"));
        assert!(admits("kind != sim_host AND name = \"say \\\"x\\\"\""));
        assert!(!admits("kind = sim_host") && !admits("kind = cart_pole AND count != 4"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_form_it_must_have() {
        for text in [
            "kind",
            "kind =",
            "= x",
            "kind = x AND",
            "kind = x y",
            "kind ! x",
            "kind = \"x",
        ] {
            let refused = Filter::parse(text, &["kind"]).unwrap_err();
            assert!(refused.message().contains("FIELD = VALUE"), "{text}");
        }
        let refused = Filter::parse("colour = red", &["kind"]).unwrap_err();
        assert!(refused.message().contains("it has kind"));
        let long = vec!["kind = x"; MOST_TERMS + 1].join(" AND ");
        assert!(Filter::parse(&long, &["kind"]).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in ".{0,60}") {
            let _ = Filter::parse(&text, &["kind"]);
        }

        #[test]
        fn any_value_can_be_named_in_quotes(value in ".{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let filter = Filter::parse(&format!("kind = \"{quoted}\""), &["kind"]).unwrap();
            prop_assert!(filter.admits(|_| value.clone()));
        }
    }
}
