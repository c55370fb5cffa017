//! The walls between this crate's rooms are where `ARCHITECTURE.md` says.

#[path = "../../dspark-runtime/tests/walls/mod.rs"]
mod walls;

#[test]
fn rooms_use_what_their_rows_say() {
    let faults = walls::faults(env!("CARGO_MANIFEST_DIR").as_ref(), "deepspec");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
