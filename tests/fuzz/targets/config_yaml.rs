//! Node files and shared settings: checked, or refused in sentences; never a panic.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(tree) = serde_yaml_ng::from_str::<serde_json::Value>(text) {
        let _ = howdah::config::check::check(&tree, Path::new("fuzz.yml"));
        let _ = howdah::config::ClusterSettings::parse(&tree);
    }
});
