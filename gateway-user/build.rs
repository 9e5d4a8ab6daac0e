//! Builds the XDP object for the BPF target, to be embedded: one binary to copy to a host.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

/// Package and file name of the kernel object.
const OBJECT: &str = "gateway-ebpf";

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    // Not `env!`: the folder that the script was built in need not be there.
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let root = package.parent().context("the package has no parent folder")?;
    for input in
        ["gateway-ebpf", "gateway-common/src", "gateway-common/Cargo.toml", "Cargo.toml", "Cargo.lock"]
    {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "little" => "bpfel-unknown-none",
        _ => "bpfeb-unknown-none",
    };
    let target_dir = out.join("bpf");
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // Types and functions for maps, callbacks and the verifier's log.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit jumps and atomic operations, Linux 5.12.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    let status = Command::new(env::var_os("CARGO").context("CARGO is not set")?)
        .current_dir(root)
        .args(["build", "--quiet", "--profile", "bpf", "-Z", "build-std=core"])
        .args(["--package", OBJECT, "--bin", OBJECT])
        .args(["--target", target, "--target-dir"])
        .arg(&target_dir)
        // `build-std` is unstable, and the pinned compiler is a stable one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Set by clippy and by other wrappers; they are not meant for the BPF target.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .context("failed to run cargo for the BPF target")?;
    if !status.success() {
        bail!(
            "the XDP object could not be built; `cargo xtask setup` installs what it needs (bpf-linker, rust-src)"
        );
    }
    let built = target_dir.join(target).join("bpf").join(OBJECT);
    std::fs::copy(&built, out.join(OBJECT))
        .with_context(|| format!("failed to copy the XDP object from {}", built.display()))?;
    Ok(())
}
