//! Tries a property on its seeds without a fuzzer.

use std::path::Path;

/// Runs a property over the seeds of a target, and over what is left of them when they are cut or damaged.
pub fn each(folder: &str, target: &str, check: fn(&[u8])) {
    let mut seeds = 0;
    for entry in std::fs::read_dir(Path::new(folder).join(target)).expect("the target has seeds") {
        let seed = std::fs::read(entry.expect("the folder is readable").path()).expect("a seed is readable");
        seeds += 1;
        check(&seed);
        for at in (0..seed.len()).step_by(seed.len() / 400 + 1) {
            check(&seed[..at]);
            let mut damaged = seed.clone();
            damaged[at] ^= 1 << (at % 8);
            check(&damaged);
        }
    }
    assert!(seeds > 0, "{target} has no seeds");
}
