//! The text of an HTML fragment: `BeautifulSoup(markup, "html.parser").text`.
//!
//! Captions are hardly ever HTML, so what matters is what Python's tolerant parser does with `<`
//! and `&` in ordinary text; this follows `html.parser` of Python 3.11 event by event. Text in
//! `script`, `style`, `template`, `rt` and `rp` is no text; comments and declarations are none
//! either. Where that parser gives up with an exception (`<![` and no known word), the rest is
//! taken as it stands.

use crate::entities;
use crate::python::{is_space, strip};

/// Elements that have no content, so that they close at once.
const EMPTY: [&str; 24] = [
    "area", "base", "basefont", "bgsound", "br", "col", "command", "embed", "frame", "hr", "image",
    "img", "input", "isindex", "keygen", "link", "menuitem", "meta", "nextid", "param", "source",
    "spacer", "track", "wbr",
];
/// Elements whose strings are not the document's text.
const HIDDEN: [&str; 5] = ["rp", "rt", "script", "style", "template"];
/// Elements in which a string of spaces stays as it is.
const PREFORMATTED: [&str; 2] = ["pre", "textarea"];

/// The document's text.
pub(crate) fn text(markup: &str) -> String {
    if !markup.contains(['<', '&']) {
        return if markup.is_empty() { String::new() } else { collapse(markup).to_string() };
    }
    let mut parser = Parser {
        source: markup.chars().collect(),
        raw_element: None,
        document: Document::default(),
    };
    let at = parser.run(0, false);
    parser.run(at, true);
    parser.document.end_string(Kind::Text);
    parser.document.text
}

/// A string of nothing but spaces is one space, or one line end if it has one.
fn collapse(string: &str) -> &str {
    if !string.chars().all(|c| matches!(c, '\n' | '\t' | '\u{c}' | '\r' | ' ')) {
        return string;
    }
    if string.contains('\n') { "\n" } else { " " }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    CData,
    Other,
}

/// What the events build, as far as the text depends on it.
#[derive(Default)]
struct Document {
    text: String,
    string: String,
    open: Vec<String>,
    /// Empty elements that were closed on opening and still may meet an end tag.
    closed: Vec<String>,
    hidden: usize,
    preformatted: usize,
}

impl Document {
    fn end_string(&mut self, kind: Kind) {
        let string = std::mem::take(&mut self.string);
        if string.is_empty() || kind == Kind::Other || (kind == Kind::Text && self.hidden > 0) {
            return;
        }
        self.text.push_str(if self.preformatted > 0 { &string } else { collapse(&string) });
    }

    fn count(&mut self, name: &str, step: isize) {
        if HIDDEN.contains(&name) {
            self.hidden = self.hidden.wrapping_add_signed(step);
        }
        if PREFORMATTED.contains(&name) {
            self.preformatted = self.preformatted.wrapping_add_signed(step);
        }
    }

    fn start(&mut self, name: String, self_closing: bool) {
        self.end_string(Kind::Text);
        self.count(&name, 1);
        self.open.push(name.clone());
        if self_closing {
            self.close(&name);
        } else if EMPTY.contains(&name.as_str()) {
            self.close(&name);
            self.closed.push(name);
        }
    }

    fn end(&mut self, name: &str) {
        if let Some(at) = self.closed.iter().position(|closed| closed == name) {
            self.closed.remove(at);
        } else {
            self.close(name);
        }
    }

    fn close(&mut self, name: &str) {
        self.end_string(Kind::Text);
        let Some(at) = self.open.iter().rposition(|open| open == name) else { return };
        for name in self.open.split_off(at) {
            self.count(&name, -1);
        }
    }

    fn aside(&mut self, string: &str, kind: Kind) {
        self.end_string(Kind::Text);
        self.string.push_str(string);
        self.end_string(kind);
    }
}

struct Parser {
    source: Vec<char>,
    /// The element (`script`, `style`) in which nothing but its end tag is markup.
    raw_element: Option<String>,
    document: Document,
}

/// What became of markup that begins at some position.
enum Parsed {
    /// It ends here.
    End(usize),
    /// The text ends inside it.
    Incomplete,
    /// The parser knows no way on.
    Rejected,
}

impl Parser {
    fn string(&self, from: usize, to: usize) -> String {
        self.source[from..to.max(from)].iter().collect()
    }

    fn push(&mut self, from: usize, to: usize) {
        self.document.string.extend(&self.source[from..to.max(from)]);
    }

    fn at(&self, at: usize) -> Option<char> {
        self.source.get(at).copied()
    }

    fn find(&self, c: char, from: usize) -> Option<usize> {
        let from = from.min(self.source.len());
        self.source[from..].iter().position(|&other| other == c).map(|found| from + found)
    }

    fn starts_with(&self, at: usize, word: &str) -> bool {
        word.chars()
            .enumerate()
            .all(|(k, c)| self.at(at + k).is_some_and(|x| x.to_ascii_lowercase() == c))
    }

    fn skip(&self, mut at: usize, class: impl Fn(char) -> bool) -> usize {
        while self.at(at).is_some_and(&class) {
            at += 1;
        }
        at
    }

    /// Reads from `at` as far as it can; with `last`, no more text will come. Returns where the
    /// rest begins.
    fn run(&mut self, mut at: usize, last: bool) -> usize {
        let count = self.source.len();
        while at < count {
            let Some(next) = self.next_markup(at) else {
                if self.raw_element.is_some() {
                    break;
                }
                self.push(at, count);
                return count;
            };
            self.push(at, next);
            at = next;
            if self.source[at] == '&' {
                match self.reference(at, last) {
                    Ok(next) => at = next,
                    Err(next) => {
                        at = next;
                        break;
                    }
                }
                continue;
            }
            match self.markup(at) {
                Some(Parsed::End(next)) => at = next,
                Some(Parsed::Rejected) => {
                    self.push(at, count);
                    return count;
                }
                Some(Parsed::Incomplete) if last => {
                    let next = match self.find('>', at + 1) {
                        Some(end) => end + 1,
                        None => self.find('<', at + 1).unwrap_or(at + 1),
                    };
                    self.push(at, next);
                    at = next;
                }
                Some(Parsed::Incomplete) | None => break,
            }
        }
        if last && at < count && self.raw_element.is_none() {
            self.push(at, count);
            at = count;
        }
        at
    }

    fn next_markup(&self, from: usize) -> Option<usize> {
        let Some(element) = &self.raw_element else {
            return self.source[from..]
                .iter()
                .position(|c| matches!(c, '<' | '&'))
                .map(|k| from + k);
        };
        let ends_here = |&at: &usize| {
            let name = self.skip(at + 2, is_space);
            self.starts_with(at, "</")
                && self.starts_with(name, element)
                && self.at(self.skip(name + element.len(), is_space)) == Some('>')
        };
        (from..self.source.len()).find(ends_here)
    }

    /// A character reference: where to go on, or (as an error) where reading stops.
    fn reference(&mut self, at: usize, last: bool) -> Result<usize, usize> {
        let count = self.source.len();
        if self.at(at + 1) == Some('#') {
            let hex = matches!(self.at(at + 2), Some('x' | 'X'));
            let digits = at + 2 + usize::from(hex);
            let radix = if hex { 16 } else { 10 };
            let end = self.skip(digits, |c| c.is_digit(radix));
            if end > digits && self.at(end).is_some_and(|c| !c.is_ascii_hexdigit()) {
                let number = self.source[digits..end].iter().fold(0u32, |number, c| {
                    number.saturating_mul(radix).saturating_add(c.to_digit(radix).unwrap_or(0))
                });
                let character = match number {
                    0 => '\u{FFFD}',
                    0x80..=0x9F => entities::windows_1252(number).unwrap_or('\u{FFFD}'),
                    _ => char::from_u32(number).unwrap_or('\u{FFFD}'),
                };
                self.document.string.push(character);
                return Ok(end + usize::from(self.at(end) == Some(';')));
            }
            if self.find(';', at).is_some() {
                self.push(at, at + 2);
                return Err(at + 2);
            }
            return Err(at);
        }
        if self.at(at + 1).is_some_and(|c| c.is_ascii_alphabetic()) {
            let mut end = self.skip(at + 2, |c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
            if end == count {
                // Some character must end the name; a `-` or `.` of the name can.
                let ends = |&k: &usize| !self.source[k].is_ascii_alphanumeric();
                let Some(shorter) = (at + 2..count).rev().find(ends) else {
                    return Err(if last && count == at + 2 { at + 1 } else { at });
                };
                end = shorter;
            }
            let name = self.string(at + 1, end);
            match entities::named(&name) {
                Some(characters) => self.document.string.push_str(characters),
                None => self.push(at, end),
            }
            return Ok(end + usize::from(self.at(end) == Some(';')));
        }
        if at + 1 < count {
            self.document.string.push('&');
            return Ok(at + 1);
        }
        Err(at)
    }

    /// Markup after `<`; none if the `<` is the last character.
    fn markup(&mut self, at: usize) -> Option<Parsed> {
        let next = self.at(at + 1);
        if next.is_some_and(|c| c.is_ascii_alphabetic()) {
            return Some(self.start_tag(at));
        }
        Some(match next? {
            '/' => self.end_tag(at),
            '!' if self.starts_with(at, "<!--") => self.comment(at),
            '?' => self.bogus(at),
            '!' if self.starts_with(at, "<![") => self.section(at),
            '!' if self.starts_with(at, "<!doctype") => match self.find('>', at + 9) {
                Some(end) => {
                    self.document.end_string(Kind::Text);
                    Parsed::End(end + 1)
                }
                None => Parsed::Incomplete,
            },
            '!' => self.bogus(at),
            _ => {
                self.document.string.push('<');
                Parsed::End(at + 1)
            }
        })
    }

    fn bogus(&mut self, at: usize) -> Parsed {
        let Some(end) = self.find('>', at + 2) else { return Parsed::Incomplete };
        self.document.end_string(Kind::Text);
        Parsed::End(end + 1)
    }

    /// Where `mark`, spaces, `>` begins and where it ends.
    fn closing(&self, from: usize, mark: &str) -> Option<(usize, usize)> {
        (from..self.source.len()).find_map(|at| {
            let mut end = at;
            for c in mark.chars() {
                if self.at(end) != Some(c) {
                    return None;
                }
                end += 1;
                if c == ']' {
                    end = self.skip(end, is_space);
                }
            }
            end = self.skip(end, is_space);
            (self.at(end) == Some('>')).then_some((at, end + 1))
        })
    }

    fn comment(&mut self, at: usize) -> Parsed {
        let Some((_, end)) = self.closing(at + 4, "--") else { return Parsed::Incomplete };
        self.document.end_string(Kind::Text);
        Parsed::End(end)
    }

    fn section(&mut self, at: usize) -> Parsed {
        let from = at + 3;
        if from == self.source.len() {
            return Parsed::Incomplete;
        }
        if !self.source[from].is_ascii_alphabetic() {
            return Parsed::Rejected;
        }
        let name_end =
            self.skip(from, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if self.skip(name_end, is_space) == self.source.len() {
            return Parsed::Incomplete;
        }
        let mark = match self.string(from, name_end).to_ascii_lowercase().as_str() {
            "temp" | "cdata" | "ignore" | "include" | "rcdata" => "]]",
            "if" | "else" | "endif" => "]",
            _ => return Parsed::Rejected,
        };
        let Some((content_end, end)) = self.closing(from, mark) else { return Parsed::Incomplete };
        if self.starts_with(from, "cdata[") {
            let content = self.string(from + "cdata[".len(), content_end);
            self.document.aside(&content, Kind::CData);
        } else {
            self.document.aside("", Kind::Other);
        }
        Parsed::End(end)
    }

    fn end_tag(&mut self, at: usize) -> Parsed {
        let Some(gt) = self.find('>', at + 1) else { return Parsed::Incomplete };
        let from = self.skip(at + 2, is_space);
        let plain_end =
            self.skip(from, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_'));
        let plain = self.at(from).is_some_and(|c| c.is_ascii_alphabetic())
            && self.skip(plain_end, is_space) == gt;
        if plain {
            let name = self.string(from, plain_end).to_lowercase();
            if self.raw_element.as_ref().is_some_and(|element| *element != name) {
                self.push(at, gt + 1);
                return Parsed::End(gt + 1);
            }
            self.document.end(&name);
            self.raw_element = None;
            return Parsed::End(gt + 1);
        }
        if self.raw_element.is_some() {
            self.push(at, gt + 1);
            return Parsed::End(gt + 1);
        }
        if !self.at(at + 2).is_some_and(|c| c.is_ascii_alphabetic()) {
            return if gt == at + 2 { Parsed::End(gt + 1) } else { self.bogus(at) };
        }
        let name_end = self.skip(at + 2, is_tag_name);
        let name = self.string(at + 2, name_end).to_lowercase();
        self.document.end(&name);
        Parsed::End(gt + 1)
    }

    /// Spaces and slashes, without the slash of a final `/>`.
    fn gap(&self, mut at: usize) -> usize {
        loop {
            match self.at(at) {
                Some(c) if is_space(c) => at += 1,
                Some('/') if self.at(at + 1) != Some('>') => at += 1,
                _ => return at,
            }
        }
    }

    /// The end of the attribute at `at`, and of the gap after it; none if there is no attribute.
    fn attribute(&self, at: usize) -> Option<usize> {
        let before = self.source[at - 1];
        let first = self.at(at)?;
        if !(matches!(before, '\'' | '"' | '/') || is_space(before)) {
            return None;
        }
        if is_space(first) || first == '/' || first == '>' {
            return None;
        }
        let name_end = self.skip(at + 1, |c| !is_space(c) && !matches!(c, '/' | '=' | '>'));
        Some(self.gap(self.value(name_end).unwrap_or(name_end)))
    }

    /// The end of a `= value` at `at`.
    fn value(&self, at: usize) -> Option<usize> {
        let signs = self.skip(at, is_space);
        let signs_end = self.skip(signs, |c| c == '=');
        if signs_end == signs {
            return None;
        }
        let value = self.skip(signs_end, is_space);
        match self.at(value) {
            Some(quote @ ('\'' | '"')) => match self.find(quote, value + 1) {
                Some(end) => Some(end + 1),
                // No closing quote: the space before it, or one of several `=`, is the value.
                None if value > signs_end => Some(value - 1),
                None if signs_end > signs + 1 => {
                    Some(self.skip(signs_end - 1, |c| !is_space(c) && c != '>'))
                }
                None => None,
            },
            _ => Some(self.skip(value, |c| !is_space(c) && c != '>')),
        }
    }

    fn start_tag(&mut self, at: usize) -> Parsed {
        let name_end = self.skip(at + 1, is_tag_name);
        let mut end = self.skip(name_end, |c| is_space(c) || c == '/');
        // The first attribute may begin at once or after giving back part of the gap.
        while let Some(next) = self.attribute(end) {
            end = next;
        }
        end = self.skip(end, is_space);
        let tag_end = match self.at(end) {
            Some('>') => end + 1,
            Some('/') if self.at(end + 1) == Some('>') => end + 2,
            Some(c) if c.is_ascii_alphabetic() || c == '=' || c == '/' => {
                return Parsed::Incomplete;
            }
            None => return Parsed::Incomplete,
            Some(_) => end,
        };
        let mut rest = self.gap(name_end);
        while rest < tag_end {
            match self.attribute(rest) {
                Some(next) => rest = next,
                None => break,
            }
        }
        let closing = self.string(rest, tag_end);
        let closing = strip(&closing);
        if closing != ">" && closing != "/>" {
            self.push(at, tag_end);
            return Parsed::End(tag_end);
        }
        let name = self.string(at + 1, name_end).to_lowercase();
        let self_closing = closing == "/>";
        if !self_closing && (name == "script" || name == "style") {
            self.raw_element = Some(name.clone());
        }
        self.document.start(name, self_closing);
        Parsed::End(tag_end)
    }
}

fn is_tag_name(c: char) -> bool {
    !matches!(c, '\t' | '\n' | '\r' | '\u{c}' | ' ' | '/' | '>' | '\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_text_as_python_does() {
        for (markup, expected) in [
            ("<b>bold</b> <i class='a>b'>x</i>", "bold x"),
            ("a < b & c > d", "a < b & c > d"),
            ("i <3 u<", "i <3 u<"),
            ("&lt;b&gt; &copy2; &copy &#x80;&#39; &", "<b> &copy2 © €' &"),
            ("a<script>x</b></script>b<style>c", "ab"),
            ("<!-- c --><!doctype html><?pi?><![cdata[ d ]]>e", " d e"),
            ("one<br>two</br><p/>three</p>", "onetwothree"),
            ("x <a href=\"unclosed", "x <a href=\"unclosed"),
            ("<template>h<b>i</b></template>j<rt>k</rt>", "j"),
            ("&#12a; <b>rest</b> &#x1", "&#12a; rest &#x1"),
            ("tail &a", "tail a"),
        ] {
            assert_eq!(text(markup), expected, "{markup}");
        }
    }
}
