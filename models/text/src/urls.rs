//! Deletes web addresses from a caption, as upstream's two expressions do.
//!
//! An address begins at a word boundary. It is a scheme (`http:`, `https:`, or `www:` in the second
//! expression) with one to three slashes or one more character, or a host: a run of ASCII letters,
//! digits, `.` and `-` up to its last `.` that one of eight top-level names follows, then word
//! characters, `/` and `-` up to a word boundary, then a `/`; no `@` may come next. The scheme wins
//! over the host, so of `http://x.com/abc` first `http://` goes, then `x.com/abc`.
//!
//! A backtracking matcher takes quadratic time here; this one looks at each `.` once.

use crate::python::is_word;

const TOP_LEVEL: [&str; 8] = ["com", "co", "ru", "net", "org", "edu", "gov", "it"];

/// `text` without addresses whose scheme is one of `schemes`, and without hosts.
pub(crate) fn delete(text: &str, schemes: &[&str]) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    // Up to here no host can begin: the run that holds this position has no usable `.` left.
    let mut hostless = 0;
    while at < chars.len() {
        let end = if is_boundary(&chars, at) {
            scheme_end(&chars, at, schemes).or_else(|| {
                if at < hostless {
                    return None;
                }
                let found = host_end(&chars, at);
                if found.is_none() {
                    hostless = run_end(&chars, at);
                }
                found
            })
        } else {
            None
        };
        match end {
            Some(end) => at = end,
            None => {
                kept.push(chars[at]);
                at += 1;
            }
        }
    }
    kept
}

fn is_boundary(chars: &[char], at: usize) -> bool {
    let before = at > 0 && is_word(chars[at - 1]);
    let after = at < chars.len() && is_word(chars[at]);
    before != after
}

fn starts_with(chars: &[char], at: usize, word: &str) -> bool {
    let mut rest = chars[at.min(chars.len())..].iter();
    word.chars().all(|c| rest.next() == Some(&c))
}

fn scheme_end(chars: &[char], at: usize, schemes: &[&str]) -> Option<usize> {
    let scheme = schemes.iter().find(|scheme| starts_with(chars, at, scheme))?;
    let after = at + scheme.len();
    let slashes = chars[after..].iter().take(3).take_while(|&&c| c == '/').count();
    if slashes > 0 {
        return Some(after + slashes);
    }
    let next = chars.get(after)?;
    (next.is_ascii_alphanumeric() || *next == '%').then_some(after + 1)
}

fn run_end(chars: &[char], at: usize) -> usize {
    let in_run = |c: &char| c.is_ascii_alphanumeric() || *c == '.' || *c == '-';
    at + chars[at..].iter().take_while(|c| in_run(c)).count()
}

fn host_end(chars: &[char], at: usize) -> Option<usize> {
    let end = run_end(chars, at);
    (at + 1..end).rev().filter(|&dot| chars[dot] == '.').find_map(|dot| tail_end(chars, dot + 1))
}

/// Where an address ends whose top-level name begins at `at`.
fn tail_end(chars: &[char], at: usize) -> Option<usize> {
    TOP_LEVEL.iter().filter(|name| starts_with(chars, at, name)).find_map(|name| {
        let start = at + name.len();
        let path =
            chars[start..].iter().take_while(|&&c| is_word(c) || c == '/' || c == '-').count();
        (start..=start + path).rev().filter(|&end| is_boundary(chars, end)).find_map(|end| {
            let next = chars.get(end);
            if next == Some(&'/') && chars.get(end + 1) != Some(&'@') {
                return Some(end + 1);
            }
            (next != Some(&'@')).then_some(end)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_wins_over_its_host() {
        let once = delete("see http://x.com/abc now", &["https:", "http:"]);
        assert_eq!(once, "see  now");
        assert_eq!(delete("www:x.org", &["www:"]), ".org");
        assert_eq!(delete("http: no", &["https:", "http:"]), "http: no");
    }

    #[test]
    fn a_mail_address_is_kept_up_to_its_at_sign() {
        assert_eq!(delete("a.com@b", &[]), "a.com@b");
        assert_eq!(delete("a.com/x-y/@b", &[]), "/@b");
    }

    #[test]
    fn a_long_run_takes_linear_time() {
        let text = "a-.".repeat(200_000);
        assert_eq!(delete(&text, &["https:", "http:"]), text);
    }
}
