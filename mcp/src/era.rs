//! The five published revisions of the protocol and what each allows on the wire. What one message must become to pass
//! from one to another is left to the bridge.

use std::fmt;

/// A published revision of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    V2024_11_05,
    V2025_03_26,
    V2025_06_18,
    V2025_11_25,
    V2026_07_28,
}

/// The three wires that the revisions share between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Era {
    /// 2024-11-05: a GET stream that names the address to POST to, and carries every answer.
    HttpSse,
    /// 2025-03-26 to 2025-11-25: Streamable HTTP, opened by `initialize`, perhaps with a session.
    Sessions,
    /// 2026-07-28: every request carries its own version and capabilities in `_meta`.
    Stateless,
}

impl Revision {
    /// Every revision, oldest first.
    pub const ALL: [Self; 5] =
        [Self::V2024_11_05, Self::V2025_03_26, Self::V2025_06_18, Self::V2025_11_25, Self::V2026_07_28];

    /// The newest revision.
    pub const LATEST: Self = Self::V2026_07_28;

    /// The newest revision that opens with `initialize`: what a server offers a client whose version it does not know.
    pub const LATEST_LEGACY: Self = Self::V2025_11_25;

    /// What a POST without `MCP-Protocol-Version` means [2025-06-18 basic/transports#protocol-version-header].
    pub const ASSUMED: Self = Self::V2025_03_26;

    /// The name on the wire, a date.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// Reads the name on the wire, exactly; `None` for a revision that this program does not know.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|revision| revision.as_str() == text)
    }

    /// The wire that this revision is spoken on.
    pub fn era(self) -> Era {
        match self {
            Self::V2024_11_05 => Era::HttpSse,
            Self::V2025_03_26 | Self::V2025_06_18 | Self::V2025_11_25 => Era::Sessions,
            Self::V2026_07_28 => Era::Stateless,
        }
    }

    /// Whether version and capabilities ride in `_meta` of every request instead of in `initialize`.
    pub fn is_modern(self) -> bool {
        self.era() == Era::Stateless
    }

    /// Whether a POST may carry an array of messages. 2025-03-26 alone says that receivers must take them.
    pub fn has_batches(self) -> bool {
        self == Self::V2025_03_26
    }

    /// Whether requests after the handshake must carry `MCP-Protocol-Version`.
    pub fn has_version_header(self) -> bool {
        self >= Self::V2025_06_18
    }

    /// The code of "resource not found": its own until 2025-11-25, invalid params from 2026-07-28.
    pub fn resource_not_found(self) -> i64 {
        if self.is_modern() {
            crate::jsonrpc::code::INVALID_PARAMS
        } else {
            crate::jsonrpc::code::RESOURCE_NOT_FOUND_LEGACY
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Era {
    /// A stable name for metrics and audit.
    pub fn label(self) -> &'static str {
        match self {
            Self::HttpSse => "http_sse",
            Self::Sessions => "sessions",
            Self::Stateless => "stateless",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_revision_reads_back_its_own_name() {
        for revision in Revision::ALL {
            assert_eq!(Revision::parse(revision.as_str()), Some(revision));
        }
        for unknown in ["", "2025-06-18 ", "2025-6-18", "2026-07-29", "DRAFT-2026-v1"] {
            assert_eq!(Revision::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn only_the_latest_revision_is_stateless() {
        let modern: Vec<_> = Revision::ALL.into_iter().filter(|revision| revision.is_modern()).collect();
        assert_eq!(modern, [Revision::LATEST]);
        assert_eq!(Revision::V2024_11_05.era(), Era::HttpSse);
        assert_eq!(Revision::ASSUMED.era(), Era::Sessions);
    }
}
