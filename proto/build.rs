//! Compiles the `.proto` files with a pure Rust compiler, so that no `protoc` is needed.

use std::path::Path;

use prost::Message as _;

const FILES: &[&str] = &[
    "waffles/audit/v1/audit.proto",
    "waffles/auth/v1/access.proto",
    "waffles/auth/v1/auth.proto",
    "waffles/auth/v1/principals.proto",
    "waffles/discovery/v1/discovery.proto",
    "waffles/discovery/v1/keys.proto",
    "waffles/policy/v1/limit.proto",
    "waffles/policy/v1/policy.proto",
    "waffles/policy/v1/types.proto",
    "waffles/proxy/v1/enrolment.proto",
    "waffles/proxy/v1/proxy.proto",
    "waffles/registry/v1/health.proto",
    "waffles/registry/v1/namespace.proto",
    "waffles/registry/v1/registry.proto",
    "waffles/tenant/v1/tenant.proto",
    "waffles/secret/v1/secret.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=waffles");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .client_mod_attribute(".", r#"#[cfg(feature = "rpc")]"#)
        .server_mod_attribute(".", r#"#[cfg(feature = "rpc")]"#)
        .compile_fds(descriptors)?;
    Ok(())
}
