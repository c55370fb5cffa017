//! The walls between the runtime's rooms are where `ARCHITECTURE.md` says.

mod walls;

#[test]
fn rooms_use_what_their_rows_say() {
    let faults = walls::faults(env!("CARGO_MANIFEST_DIR").as_ref(), "dspark-runtime");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
