//! Turns the protocol definitions into Rust: messages and services for gRPC, serde for the JSON gateway.
//! Pure Rust (protox), so that a fresh machine needs no `protoc`.

use std::error::Error;
use std::path::Path;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = Path::new("src/etcd/proto");
    println!("cargo::rerun-if-changed=src/etcd/proto");
    println!("cargo::rerun-if-changed=src/etcd/build.rs");
    let files = protox::compile(["rpc.proto", "health.proto", "v3lock.proto", "v3election.proto"], [protos])?;
    let descriptors = files.encode_to_vec();
    tonic_prost_build::configure().build_client(false).compile_fds(files)?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .preserve_proto_field_names()
        .ignore_unknown_fields()
        .build(&[".etcdserverpb", ".mvccpb", ".authpb", ".v3lockpb", ".v3electionpb"])?;
    Ok(())
}
