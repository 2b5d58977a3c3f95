//! JSON as editors write it, with comments and commas before a closing bracket, made JSON.

/// Replaces comments by blanks and leaves out commas that nothing follows. What stands in strings stays as it is, and
/// lines keep their numbers, so that an error of the reader is found where it is.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    // Where a comma stands that nothing has followed yet.
    let mut comma = None;
    let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('"', _) => {
                comma = None;
                plain.push('"');
                let mut escaped = false;
                for c in chars.by_ref() {
                    plain.push(c);
                    match c {
                        '"' if !escaped => break,
                        '\\' => escaped = !escaped,
                        _ => escaped = false,
                    }
                }
            }
            ('/', Some('/')) => while chars.next_if(|c| *c != '\n').is_some() {},
            ('/', Some('*')) => {
                chars.next();
                let mut last = ' ';
                for c in chars.by_ref() {
                    if c == '\n' {
                        plain.push('\n');
                    }
                    if (last, c) == ('*', '/') {
                        break;
                    }
                    last = c;
                }
                plain.push(' ');
            }
            (',', _) => {
                comma = Some(plain.len());
                plain.push(',');
            }
            ('}' | ']', _) => {
                if let Some(at) = comma.take() {
                    plain.replace_range(at..=at, " ");
                }
                plain.push(c);
            }
            (c, _) => {
                if !c.is_whitespace() {
                    comma = None;
                }
                plain.push(c);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let read: serde_json::Value =
            serde_json::from_str(&plain(text)).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(read, serde_json::from_str::<serde_json::Value>(expected).unwrap(), "{text}");
    }

    #[test]
    fn comments_and_last_commas_are_left_out() {
        check("{ // one\n \"a\": 1, /* two\n, \" */ \"b\": [1, 2,], }", r#"{"a":1,"b":[1,2]}"#);
        check("\u{feff}{\"a\": 1 /**/ , /* x */ }", r#"{"a":1}"#);
        check("[1,\n// last\n]", "[1]");
    }

    #[test]
    fn strings_stay_as_they_are() {
        let text = r#"{"url":"http://h/*x*/","b":"\\","c":"a \" // ,}","d":",]"}"#;
        assert_eq!(plain(text), text);
    }

    #[test]
    fn what_is_no_json_does_not_become_some() {
        for text in ["{,}x", "[1,,]", "{\"a\": \"b", "/*"] {
            assert!(serde_json::from_str::<serde_json::Value>(&plain(text)).is_err(), "{text}");
        }
    }
}
