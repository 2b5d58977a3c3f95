//! Which ports are connected to. Those below 1024 belong to services of the system, which have no business with MCP and
//! understand enough of an HTTP request to be harmed by one.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A set of ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// Every port.
    pub fn any() -> Self {
        Self(vec![1..=u16::MAX])
    }

    /// Whether a port is open.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self(vec![80..=80, 443..=443, 1024..=u16::MAX])
    }
}

/// Reads `80,443,1024-65535`.
impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be ports and ranges of 1 to 65535, such as `80,443,8000-8999`";
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (port(from.trim())?, port(to.trim())?);
            (from <= to).then_some(from..=to)
        };
        text.split(',').map(range).collect::<Option<Vec<_>>>().map(Self).ok_or(FORM)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (from, to) if from == to => write!(f, "{comma}{from}")?,
                (from, to) => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written_alike() {
        for text in ["80,443,1024-65535", "1-65535", "8080"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!(Ports::default().to_string(), "80,443,1024-65535");
        for bad in ["", "0", "80,", "a", "90-80", "65536", "-", "1-2-3"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
        for (port, open) in [(80, true), (443, true), (22, false), (25, false), (1024, true), (0, false)] {
            assert_eq!(Ports::default().contains(port), open, "{port}");
        }
    }
}
