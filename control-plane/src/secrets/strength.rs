//! What is no secret, though it has the form of one: what people type, copy from examples, or leave as it was.

/// What stands in examples, manuals and templates, in lower case and without its separators.
const PLACEHOLDERS: [&str; 26] = [
    "admin",
    "changeit",
    "changeme",
    "default",
    "example",
    "insecure",
    "letmein",
    "mypassword",
    "mysecretpassword",
    "pass",
    "passw0rd",
    "password",
    "password1",
    "password123",
    "placeholder",
    "pleasechange",
    "pleasechangeme",
    "postgres",
    "qwerty",
    "redis",
    "replaceme",
    "root",
    "secret",
    "test",
    "todo",
    "waffles",
];

/// Whether a password is one that stands in examples.
pub(crate) fn is_placeholder(password: &str) -> bool {
    let bare: String =
        password.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let digits = !bare.is_empty() && bare.len() < 12 && bare.bytes().all(|b| b.is_ascii_digit());
    digits || PLACEHOLDERS.contains(&bare.as_str())
}

/// Why 32 bytes are not random; none where they may be. Random ones are refused less than once in a million million.
pub(super) fn weakness(key: &[u8; 32]) -> Option<&'static str> {
    let mut seen = [false; 256];
    for byte in key {
        if let Some(seen) = seen.get_mut(usize::from(*byte)) {
            *seen = true;
        }
    }
    let different = seen.iter().filter(|seen| **seen).count();
    if different == 1 {
        return Some("is one byte, again and again");
    }
    if different < 18 {
        return Some("repeats itself, so it is not random");
    }
    let steps: Vec<u8> =
        key.windows(2).filter_map(|pair| Some(pair.get(1)?.wrapping_sub(*pair.first()?))).collect();
    if steps.windows(2).all(|pair| pair.first() == pair.get(1)) {
        return Some("counts, so it is not random");
    }
    if key.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return Some("is a text, so it is not random");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_told_from_what_is_random() {
        let counting: Vec<u8> = (1..=32).collect();
        let pattern = [0xde, 0xad, 0xbe, 0xef].repeat(8);
        for weak in
            [&[0; 32][..], &[0xff; 32], &counting, &pattern, b"changeme-changeme-changeme-12345", &[1; 32]]
        {
            assert!(weakness(weak.try_into().unwrap()).is_some(), "{weak:?}");
        }
        for _ in 0..10_000 {
            let mut key = [0; 32];
            aws_lc_rs::rand::fill(&mut key).unwrap();
            assert_eq!(weakness(&key), None, "{key:?}");
        }
    }

    #[test]
    fn a_password_of_an_example_is_a_placeholder() {
        for text in
            ["changeme", "Change-Me!", "PASSWORD", "postgres", "12345678", "please_change_me", "secret"]
        {
            assert!(is_placeholder(text), "{text}");
        }
        for text in ["waffles-tests", "correct horse battery", "x7Gk29sLq0", "", "938475938475934"] {
            assert!(!is_placeholder(text), "{text}");
        }
    }
}
