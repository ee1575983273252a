//! Lists of a service, page by page.

use tonic::Status;

/// All entries of a list. `page` asks for the page that a token names, the first by an empty one, and returns its
/// entries and the token of the next, which is empty on the last.
///
/// # Errors
/// Those of `page`.
pub(super) async fn all<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Status>,
) -> Result<Vec<T>, Status> {
    let (mut entries, mut token) = page(String::new()).await?;
    while !token.is_empty() {
        let (more, next) = page(token).await?;
        entries.extend(more);
        token = next;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_asked_for_until_none_is_left() {
        let mut asked = vec![];
        let entries = all(async |token: String| {
            asked.push(token.clone());
            Ok(match &token[..] {
                "" => (vec![1, 2], "b".to_owned()),
                _ => (vec![3], String::new()),
            })
        });
        assert_eq!(entries.await.unwrap(), [1, 2, 3]);
        assert_eq!(asked, ["", "b"]);
    }
}
