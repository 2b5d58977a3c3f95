//! `waffles-report FILE`: the figures that `make soak` and `make bench` noted, as one page in Markdown.

use std::path::Path;

use anyhow::Context as _;

#[allow(clippy::print_stdout, reason = "it is what the program is for")]
fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("usage: waffles-report FILE")?;
    let path = Path::new(&path);
    print!("{}", waffles_tests::promise::page_of(path).with_context(|| path.display().to_string())?);
    Ok(())
}
