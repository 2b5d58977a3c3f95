//! Properties that hold for any bytes, one module a fuzz target. Each has one function `check`, which panics where its
//! property does not hold. The tests run them over the seeds, so that they are tried without a fuzzer too.

pub mod cursors;
pub mod headers;
pub mod jsonrpc;
pub mod names_uris;
pub mod sealed;
pub mod seeds;
pub mod slow;
pub mod sse;
pub mod translate;

#[cfg(test)]
mod tests {
    const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds");

    macro_rules! targets {
        ($($target:ident),+ $(,)?) => {
            $(#[test]
            fn $target() {
                super::seeds::each(SEEDS, stringify!($target), super::$target::check);
            })+
        };
    }

    targets!(cursors, headers, jsonrpc, names_uris, sealed, sse, translate);
}
