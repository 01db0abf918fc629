//! Tells the BPF linker what it cannot know.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // LLVM 22 crashes when it expands some copies in order.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
