//! `make bench`: what a call through Waffles costs against a bare pass-through on the same machine in the same minutes.

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    waffles_tests::bench::Bench::parse().run()
}
