//! Names of tools and prompts at a federated door: `{server}__{name}`, injective and reversible. Server names are DNS
//! labels and have no `_`, so the first one in an encoded name ends the server's part. What would be longer than 64
//! characters, or has characters that clients refuse, gets a short form that ends in a hash.

use sha2::{Digest as _, Sha256};

/// Longest name that every client takes.
pub const MAX_NAME: usize = 64;
const BETWEEN: &str = "__";
/// The first `_` of a short form is followed by this, that of a whole one by another `_`.
const SHORT: &str = "_-";
const HASH: usize = 16;
const HEAD: usize = 16;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A name at a federated door, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Public<'a> {
    /// A server's name and its own name for it.
    Exact { server: &'a str, name: &'a str },
    /// A short form: its server and name are found by comparing.
    Short { text: &'a str },
    /// A name without a server.
    Bare(&'a str),
}

/// The name under which a federated door shows a server's. `server` is a DNS label.
pub fn join(server: &str, name: &str) -> String {
    if is_plain(name) && server.len() + BETWEEN.len() + name.len() <= MAX_NAME {
        return format!("{server}{BETWEEN}{name}");
    }
    let head: String = server.chars().take(HEAD).collect();
    let room = MAX_NAME - head.len() - SHORT.len() - 1 - HASH;
    let readable: String = name
        .chars()
        .map(|char| if char.is_ascii_alphanumeric() || "_-".contains(char) { char } else { '-' })
        .take(room)
        .collect();
    format!("{head}{SHORT}{readable}-{}", hash(server, name))
}

/// Reads a name at a federated door. What it finds need not be there, nor be what [`join`] would write.
pub fn split(public: &str) -> Public<'_> {
    let Some((server, rest)) = public.split_once('_').filter(|(server, _)| is_server(server)) else {
        return Public::Bare(public);
    };
    match rest.strip_prefix('_') {
        Some(name) if !name.is_empty() => Public::Exact { server, name },
        None if server.len() <= HEAD && is_short_rest(rest) => Public::Short { text: public },
        _ => Public::Bare(public),
    }
}

/// Whether a short form is that of this server and name.
pub fn is_short_of(public: &str, server: &str, name: &str) -> bool {
    matches!(split(public), Public::Short { .. })
        && public.split('_').next().is_some_and(|head| server.starts_with(head))
        && join(server, name) == public
}

/// Whether a text can be the name of a server: a DNS label.
pub(crate) fn is_server(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What follows the first `_` of a short form: `-`, something readable, `-` and the hash.
fn is_short_rest(rest: &str) -> bool {
    let Some((readable, hash)) = rest.rsplit_once('-') else { return false };
    readable.starts_with('-') && hash.len() == HASH && hash.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// 80 bits of the hash of both parts.
fn hash(server: &str, name: &str) -> String {
    let digest = Sha256::new().chain_update(server).chain_update([0]).chain_update(name).finalize();
    let bits = digest.iter().take(10).fold(0u128, |bits, byte| (bits << 8) | u128::from(*byte));
    (0..HASH)
        .map(|at| {
            let index = usize::try_from((bits >> (75 - 5 * at)) & 31).unwrap_or(0);
            char::from(*ALPHABET.get(index).unwrap_or(&b'a'))
        })
        .collect()
}

#[cfg(test)]
mod tests;
