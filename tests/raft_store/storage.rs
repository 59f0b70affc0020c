//! Log, state machine and snapshots alone: the engine's own suite, and what a restart finds.

use std::sync::Arc;

use howdah::raft::FatalHook;
use howdah::raft::internals::{Disk, LogStore, Machine, Snapshots, TypeConfig};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

struct Builder;

pub fn no_fatal() -> FatalHook {
    Arc::new(|why: &str| panic!("fatal: {why}"))
}

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a directory");
        let (disk, contents) = Disk::open(dir.path()).expect("opens");
        let log = LogStore::open(disk, &contents, no_fatal()).expect("opens");
        let machine = Machine::new(Snapshots::open(dir.path()).expect("opens"));
        Ok((dir, log, machine))
    }
}

#[test]
fn the_engines_storage_suite_passes() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(Suite::test_all(Builder)).expect("the suite passes");
}
