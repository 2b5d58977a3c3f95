//! `call SERVER TOOL`: a real MCP call through the data plane.

use std::io::Read as _;

use anyhow::Context as _;
use clap::Args;
use rmcp::model::CallToolRequestParams;
use serde_json::{Map, Value};

use crate::args::Global;
use crate::failure::Failure;
use crate::mcp::{self, Era};
use crate::output::print;
use crate::output::shape::Called;

/// Flags of `call`.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The server's name.
    server: String,
    /// The tool's name.
    tool: String,
    /// The arguments: a JSON object, @FILE, or `-` for standard input.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    args: String,
    #[command(flatten)]
    era: EraArgs,
}

/// Which family of revisions to speak.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct EraArgs {
    /// Which era of MCP to speak to the data plane.
    #[arg(long, value_name = "ERA", default_value = "auto")]
    pub(crate) era: Era,
}

/// `call`.
pub(crate) async fn run(global: &Global, args: CallArgs) -> anyhow::Result<()> {
    let arguments = arguments(&args.args)?;
    let peer = mcp::open(global, &args.server, args.era.era).await?;
    let request = CallToolRequestParams::new(args.tool.clone()).with_arguments(arguments);
    let called = tokio::select! {
        called = peer.call_tool(request) => called,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            peer.close().await;
            return Err(Failure::failed("the call was cancelled").into());
        }
    };
    let result = called.map_err(|error| mcp::failure(&error, &args.server))?;
    let content = result.content.iter().map(serde_json::to_value).collect::<Result<_, _>>();
    let called = Called {
        server: args.server,
        tool: args.tool,
        protocol_version: peer.protocol_version(),
        is_error: result.is_error == Some(true),
        content: content.context("cannot print the result")?,
        structured_content: result.structured_content,
    };
    peer.close().await;
    print(global.output, &called)?;
    if called.is_error {
        return Err(Failure::failed(format!("tool {} says that it failed", called.tool)).into());
    }
    Ok(())
}

fn arguments(text: &str) -> anyhow::Result<Map<String, Value>> {
    let text = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
        None if text == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
        None => text.to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("the arguments are no JSON object: {error}"))
            .next("Give them like this: --args '{\"message\": \"hello\"}'.")
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_one_json_object() {
        assert_eq!(arguments("{}").unwrap(), Map::new());
        assert_eq!(arguments(r#"{"a": 1}"#).unwrap().get("a"), Some(&Value::from(1)));
        for wrong in ["", "[]", "1", "{", "{} {}"] {
            assert!(arguments(wrong).is_err(), "{wrong}");
        }
    }
}
