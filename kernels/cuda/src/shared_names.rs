//! One text for one function: `CubeCL` numbers the parts of shared memory in the order of a hash table, which
//! differs from run to run. Here they are numbered in the order in which the text declares them.

use std::collections::BTreeMap;

/// `text` with the numbers of the parts of its shared memory in order; all else as it is. Texts with fewer than
/// two parts are not changed.
pub(crate) fn in_order(text: String) -> String {
    let Some(memory) = memory_name(&text) else { return text };
    let parts: Vec<&str> = text.lines().filter_map(|line| part_number(line, memory)).collect();
    let mut sorted = parts.clone();
    sorted.sort_by_key(|number| (number.len(), *number));
    if parts == sorted {
        return text;
    }
    renumbered(&text, &parts.into_iter().zip(sorted).collect())
}

/// The name of the dynamic shared memory: `extern __shared__ __align__(16) char v7[];`, which does not end its line.
fn memory_name(text: &str) -> Option<&str> {
    let (_, declared) = text.split_once("extern __shared__")?;
    let (declared, _) = declared.split_once("[];")?;
    declared.rsplit(' ').next()
}

/// The number of the value that a line declares as a part of `memory`:
/// `array<float, 9> * const v12 = reinterpret_cast<array<float, 9> *>(&v7[64]);`.
fn part_number<'t>(line: &'t str, memory: &str) -> Option<&'t str> {
    let (declared, value) = line.split_once(" = ")?;
    let (_, address) = value.split_once("(&")?;
    address.strip_prefix(memory)?.strip_prefix('[')?;
    number_of(declared.rsplit(' ').next()?).map(|(_, number)| number)
}

/// A value's name, `v12` or `x_v12`, as what comes before the number and the number.
fn number_of(word: &str) -> Option<(&str, &str)> {
    let digits = word.len() - word.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (head, number) = word.split_at(word.len() - digits);
    let name = head.strip_suffix('v')?;
    let is_value = digits > 0 && (name.is_empty() || name.ends_with('_'));
    is_value.then_some((head, number))
}

/// `text` with other numbers in the names of values.
fn renumbered(text: &str, numbers: &BTreeMap<&str, &str>) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| is_word(c) == is_word(first);
        let (word, after) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
        // `.v4` is a part of an instruction.
        let found = number_of(word).filter(|_| is_word(first) && !out.ends_with('.'));
        match found.and_then(|(head, number)| Some((head, numbers.get(number)?))) {
            Some((head, number)) => {
                out.push_str(head);
                out.push_str(number);
            }
            None => out.push_str(word),
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(first: u32, second: u32) -> String {
        format!(
            "extern __shared__ __align__(16) char v7[];uint32_t const v3 = 0;\n\
             float* const v{first} = reinterpret_cast<float*>(&v7[0]);\n\
             float* const x_v{second} = reinterpret_cast<float*>(&v7[64]);\n\
             v{first}[v1] = x_v{second}[v10{first}] + v5; asm(\"ld.v{first}.f32\");\n"
        )
    }

    #[test]
    fn both_orders_of_a_hash_table_give_one_text() {
        let ordered = text(9, 12);
        assert_eq!(in_order(ordered.clone()), ordered);
        // What looks like a number of a part and is none stays.
        let other = text(12, 9).replace("v1012", "v109").replace("ld.v12", "ld.v9");
        assert_eq!(in_order(other), ordered);
    }

    #[test]
    fn texts_with_one_part_or_none_stay() {
        for text in [
            "int x = 3;\n",
            "extern __shared__ __align__(16) char v7[];\nint* const v3 = (int*)(&v7[0]);\n",
        ] {
            assert_eq!(in_order(text.to_owned()), text);
        }
    }
}
