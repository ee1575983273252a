//! Pages of lists, as Google's AIP-158 has them.

use crate::wire::status::Failure;

const DEFAULT_SIZE: usize = 50;
const MOST: usize = 1000;

/// The number of entries on a page; 0 stands for 50, and more than 1000 for 1000.
///
/// # Errors
/// A violation of `page_size` if it is negative.
pub fn size(page_size: i32) -> Result<usize, Failure> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MOST)),
        Err(_) => Err(Failure::field(
            "page_size",
            format!("{page_size} must not be negative"),
        )),
    }
}

/// A page token that is not ours, or whose place is gone.
pub fn foreign_token(token: &str) -> Failure {
    Failure::field(
        "page_token",
        format!("\"{token}\" is not a token of this list (any more): start with an empty one"),
    )
}

/// One page of a list that is sorted by a key, behind the entry that the token names.
///
/// # Errors
/// A violation of `page_size`.
pub fn page<T>(
    entries: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> &str,
    page_size: i32,
    token: &str,
) -> Result<(Vec<T>, String), Failure> {
    let size = size(page_size)?;
    let mut rest = entries
        .into_iter()
        .filter(|entry| token.is_empty() || key(entry) > token);
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let next = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => key(last).to_owned(),
        _ => String::new(),
    };
    Ok((page, next))
}

/// One page of a list in whatever order, behind the entry that the token names.
///
/// # Errors
/// A violation of `page_size`; one of `page_token` that names none of them.
pub fn page_behind<T>(
    entries: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> String,
    page_size: i32,
    token: &str,
) -> Result<(Vec<T>, String), Failure> {
    let size = size(page_size)?;
    let mut rest = entries.into_iter();
    if !token.is_empty() {
        rest.find(|entry| key(entry) == token)
            .ok_or_else(|| foreign_token(token))?;
    }
    let page: Vec<T> = rest.by_ref().take(size).collect();
    let next = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => key(last),
        _ => String::new(),
    };
    Ok((page, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_in_any_order_goes_on_behind_the_last_entry() {
        let page = |token: &str| page_behind([3, 1, 2], ToString::to_string, 2, token);
        assert_eq!(page(""), Ok((vec![3, 1], "1".to_owned())));
        assert_eq!(page("1"), Ok((vec![2], String::new())));
        assert!(page("7").unwrap_err().message().contains("page_token"));
    }

    #[test]
    fn pages_together_hold_each_entry_once() {
        let entries = ["a", "b", "c", "d", "e"];
        let (mut seen, mut token) = (vec![], String::new());
        loop {
            let (page, next) = page(entries, |e| e, 2, &token).unwrap();
            seen.extend(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, entries);
    }

    #[test]
    fn a_negative_size_is_refused() {
        assert_eq!(size(0), Ok(50));
        assert_eq!(size(5000), Ok(1000));
        assert!(size(-1).unwrap_err().message().contains("-1"));
    }
}
