//! One suite for etcd's semantics, over three stores: the pure state machine, three real nodes, a real etcd.
//!
//! ```text
//!   vectors | random histories | watches --> Target --+--> Model: State and Watchers, in this process
//!                                                     +--> Server: etcd's client --> howdah x 3
//!                                                                               '--> etcd x 3 (Debian's)
//! ```
//! Same requests, same expectations. Revisions are counted from where the suite began, because a store of howdah's
//! holds keys of its own already.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[allow(dead_code)]
#[path = "kv/etcd.rs"]
mod etcd;
#[path = "kv/histories.rs"]
mod histories;
#[allow(dead_code)]
#[path = "compat/nodes.rs"]
mod nodes;
#[path = "kv/server.rs"]
mod server;
#[path = "kv/target.rs"]
mod target;
#[path = "kv/vectors.rs"]
mod vectors;
#[path = "kv/watches.rs"]
mod watches;

use nodes::Nodes;
use server::Server;
use target::Target;

async fn howdah() -> (Nodes, Target) {
    let nodes = tokio::task::spawn_blocking(Nodes::start).await.unwrap();
    let endpoints: Vec<String> = (0..3).map(|at| nodes.etcd_port(at)).collect();
    let target = Target::Server(Server::connect("howdah", &endpoints).await);
    (nodes, target)
}

async fn real_etcd() -> (etcd::Etcd, Target) {
    let etcd = etcd::Etcd::start().expect("etcd runs: make setup-clients installs it");
    let target = Target::Server(Server::connect("etcd", &etcd.endpoints).await);
    (etcd, target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_answers_as_etcd_is_documented() {
    let mut model = Target::Model(Box::default());
    vectors::run(&mut model).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn howdah_answers_as_etcd_is_documented() {
    let (nodes, mut target) = howdah().await;
    vectors::run(&mut target).await;
    drop(nodes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_answers_as_it_is_documented() {
    let (etcd, mut target) = real_etcd().await;
    vectors::run(&mut target).await;
    drop(etcd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn howdah_answers_random_histories_as_the_model_does() {
    let (nodes, mut target) = howdah().await;
    histories::run(&mut target).await;
    drop(nodes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_answers_random_histories_as_the_model_does() {
    let (etcd, mut target) = real_etcd().await;
    histories::run(&mut target).await;
    drop(etcd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_models_watches_keep_etcds_promises() {
    let mut model = Target::Model(Box::default());
    watches::run(&mut model).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn howdahs_watches_keep_etcds_promises() {
    let (nodes, mut target) = howdah().await;
    watches::run(&mut target).await;
    drop(nodes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcds_watches_keep_its_promises() {
    let (etcd, mut target) = real_etcd().await;
    watches::run(&mut target).await;
    drop(etcd);
}
