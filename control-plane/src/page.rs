//! Pages of a list: how many, and from where. A cursor names the last entry of the page before, so that
//! entries which come and go in between neither repeat nor hide others.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

const DEFAULT: u32 = 100;
/// Longer cursors were not made here.
const MOST_CURSOR: usize = 1024;

/// Which page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// How many at the most; 0 means 100.
    pub size: u32,
    /// The `next` of the page before; empty for the first.
    pub cursor: String,
}

/// A page.
#[derive(Debug, Clone)]
pub struct Paged<T> {
    /// Its entries.
    pub items: Vec<T>,
    /// The cursor of the page after it; empty on the last.
    pub next: String,
}

impl Page {
    /// How many entries, checked.
    pub fn limit(&self, most: u32) -> Result<u32, Error> {
        match self.size {
            0 => Ok(DEFAULT.min(most)),
            size if size <= most => Ok(size),
            _ => Err(Error::invalid("page_size", format!("must be 1 to {most}"))),
        }
    }

    /// The place that the cursor names, checked. `list` keeps the cursors of one list from another's.
    pub fn after<T: DeserializeOwned>(&self, list: &str) -> Result<Option<T>, Error> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        let read = || {
            if self.cursor.len() > MOST_CURSOR {
                return None;
            }
            let bytes = URL_SAFE_NO_PAD.decode(&self.cursor).ok()?;
            let (of, place) = serde_json::from_slice::<(String, T)>(&bytes).ok()?;
            (of == list).then_some(place)
        };
        read().map(Some).ok_or_else(|| {
            Error::invalid("cursor", "is not a cursor of this list; leave it empty for the first page")
        })
    }
}

impl<T> Paged<T> {
    /// Makes a page out of one entry more than asked for, which tells whether there is another page.
    pub fn cut<P: Serialize>(mut items: Vec<T>, limit: u32, list: &str, place: impl Fn(&T) -> P) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = match items.last() {
            Some(last) if more => cursor(list, &place(last)),
            _ => String::new(),
        };
        Self { items, next }
    }
}

fn cursor<P: Serialize>(list: &str, place: &P) -> String {
    // Places are texts, numbers and UUIDs, which JSON can always write.
    serde_json::to_vec(&(list, place)).map(|json| URL_SAFE_NO_PAD.encode(json)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_back_to_its_place_in_its_list_only() {
        let page = Paged::cut(vec!["a", "b", "c"], 2, "servers", |name| (*name).to_owned());
        assert_eq!(page.items, ["a", "b"]);
        let next = Page { size: 2, cursor: page.next };
        assert_eq!(next.after::<String>("servers").unwrap().as_deref(), Some("b"));
        assert!(next.after::<String>("audit").is_err());
        for forged in ["x", "!!!", &"A".repeat(5000)] {
            assert!(Page { size: 0, cursor: forged.into() }.after::<String>("servers").is_err());
        }
    }

    #[test]
    fn the_last_page_has_no_cursor_and_a_size_has_a_limit() {
        assert_eq!(Paged::cut(vec![1, 2], 2, "n", |n| *n).next, "");
        assert_eq!(Page::default().limit(500).unwrap(), 100);
        assert!(Page { size: 501, ..Page::default() }.limit(500).is_err());
    }
}
