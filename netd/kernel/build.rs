//! Compiles the data path with clang, and writes the codes that it shares with the policy model into a header.
use std::{env, fmt::Write as _, fs, path::Path, path::PathBuf, process::Command};

use weft_plan::policy::{Reason, Zone4, Zone6};

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn define(header: &mut String, prefix: &str, name: &str, code: u8) {
    let name = name.replace('-', "_").to_uppercase();
    writeln!(header, "#define {prefix}_{name} {code}").expect("writing to a string cannot fail");
}

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=bpf");
    let mut header = "/* Made by build.rs. */\n".to_owned();
    Reason::ALL.iter().for_each(|reason| define(&mut header, "DROP", reason.name(), reason.code()));
    Zone6::ALL.iter().for_each(|zone| define(&mut header, "ZONE6", zone.name(), zone.code()));
    Zone4::ALL.iter().for_each(|zone| define(&mut header, "ZONE4", zone.name(), zone.code()));
    fs::write(out.join("weft_codes.h"), header).expect("OUT_DIR is writable");

    let object = out.join("weft.bpf.o");
    let mut clang = Command::new("clang");
    clang.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror", "-Wno-unused-function"]);
    // Debian and Ubuntu keep asm/ in the multiarch folder, which `-target bpf` does not look into
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    clang.arg(format!("-I/usr/include/{arch}-linux-gnu")).arg("-I").arg(&out);
    clang.args(["-c", "bpf/weft.bpf.c", "-o"]).arg(&object);
    match clang.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("clang could not compile bpf/weft.bpf.c ({status}): see its messages above"),
        Err(error) => {
            panic!("clang does not run ({error}): install clang and libbpf-dev (apt-get install clang libbpf-dev)")
        }
    }
    // line information holds absolute paths: they stay in the object, and are no part of its identity
    let identity = ["weft.bpf.c", "maps.h", "packet.h", "policy.h", "clat.h"].map(read).concat();
    let codes = fs::read(out.join("weft_codes.h")).expect("written above");
    println!("cargo::rustc-env=WEFT_SCHEMA={:016x}", fnv(&read("maps.h")));
    println!("cargo::rustc-env=WEFT_PROGRAMS={:016x}", fnv(&[identity, codes].concat()));
}

fn read(name: &str) -> Vec<u8> {
    fs::read(Path::new("bpf").join(name)).unwrap_or_else(|error| panic!("bpf/{name}: {error}"))
}
