//! "Did you mean": the nearest known name to one that is not known.

/// The end of an error message about `unknown`: the nearest of `known`, or all of them if none is near.
pub(crate) fn hint<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    let near = known
        .iter()
        .map(|name| (distance(unknown, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(unknown.len()) / 4)
        .min();
    match near {
        Some((_, name)) => format!("did you mean \"{name}\"?"),
        None if known.is_empty() => "there are none".to_owned(),
        None => format!("there are {}", known.join(", ")),
    }
}

/// Levenshtein's distance: how many letters have to be put in, taken out or changed.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (row, letter) in left.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let changed = above[column] + usize::from(letter != *other);
            current.push(changed.min(above[column + 1] + 1).min(current[column] + 1));
        }
        above = current;
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::hint;

    #[test]
    fn the_nearest_name_is_offered_and_only_if_it_is_near() {
        assert_eq!(hint("top_song", ["top_songs", "user_engagement"]), "did you mean \"top_songs\"?");
        assert_eq!(hint("xyz", ["top_songs", "a"]), "there are a, top_songs");
        assert_eq!(hint("xyz", []), "there are none");
    }
}
