//! The properties of the fuzz targets, over their seeds: what a fuzzer once found is tried in every run of the tests.
//! `fuzz/` is a workspace of its own, so its modules are read from here.

#![allow(clippy::indexing_slicing, clippy::string_slice, reason = "a property fails by panicking")]
#![allow(unreachable_pub, reason = "the modules are public where they live")]

#[path = "../../fuzz/src/cursors.rs"]
mod cursors;
#[path = "../../fuzz/src/headers.rs"]
mod headers;
#[path = "../../fuzz/src/jsonrpc.rs"]
mod jsonrpc;
#[path = "../../fuzz/src/names_uris.rs"]
mod names_uris;
#[path = "../../fuzz/src/seeds.rs"]
mod seeds;
#[path = "../../fuzz/src/slow.rs"]
mod slow;
#[path = "../../fuzz/src/sse.rs"]
mod sse;
#[path = "../../fuzz/src/translate.rs"]
mod translate;

/// From this crate to the seeds.
const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds");

macro_rules! targets {
    ($($target:ident),+ $(,)?) => {
        $(#[test]
        fn $target() {
            seeds::each(SEEDS, stringify!($target), $target::check);
        })+
    };
}

mod properties {
    use super::*;

    targets!(cursors, headers, jsonrpc, names_uris, sse, translate);
}
