//! Which name a user may have meant. Every reader of names, from options to recipes, asks here.

/// The most similar of `known`, of which there is at least one; the first of several.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    let nearest = known.into_iter().min_by_key(|known| distance(known, name));
    nearest.expect("callers have names to choose from")
}

/// The `count` most similar of `known`, or as many as there are: the most similar first, each once.
pub fn nearest_few<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<&'a str> {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_by_key(|known| (distance(known, name), *known));
    known.dedup();
    known.truncate(count);
    known
}

/// Insertions, deletions and replacements between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_edits_win() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(nearest("t5xl", ["t5-large", "t5-xl", "t5-xxl"]), "t5-xl");
        let known = ["t5-large", "t5-xl", "t5-xxl", "t5-xl"];
        assert_eq!(nearest_few("t5xl", known, 2), ["t5-xl", "t5-xxl"]);
        assert_eq!(nearest_few("t5xl", ["t5-xl"], 2), ["t5-xl"]);
    }
}
