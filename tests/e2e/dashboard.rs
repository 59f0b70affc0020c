//! The dashboard in a real browser: a switchover by clicking. Screenshots stay in `target/screenshots`.

use std::path::Path;
use std::process::Command;

use crate::cluster::Cluster;

#[test]
fn a_switchover_by_clicking_is_seen_without_a_reload() {
    let cluster = Cluster::boot("dashboard");
    let primary = cluster.expect_primary();
    let others = cluster.others(&primary);
    let (watcher, candidate) = (&others[0], &others[1]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shots = root.join("target/screenshots");
    std::fs::create_dir_all(&shots).unwrap();
    let output = Command::new("node")
        .arg(root.join("tests/e2e/dashboard.js"))
        .arg(root.join("target/clients/browser/node_modules/playwright-core"))
        .arg(&shots)
        .arg(cluster.node(watcher).rest.to_string())
        .arg(candidate)
        .output()
        .expect("node runs: make setup-browser installs what it drives");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.ends_with("the dashboard works\n"), "{said}");
    assert_eq!(cluster.primary().as_ref(), Some(candidate));
}
