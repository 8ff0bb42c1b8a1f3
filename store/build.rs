//! A new migration must rebuild this crate: they are compiled in.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
