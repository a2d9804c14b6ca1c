//! Writes one honest input for each target to `corpus/TARGET/honest`: mutation finds the rest. Made by our
//! own code, so that the repository holds no foreign bytes.

use std::error::Error;
use std::fs;
use std::path::Path;

use evidence::fixture::Appliance;

const NONCE: [u8; 32] = [0xa5; 32];

fn main() -> Result<(), Box<dyn Error>> {
    let appliance = Appliance::booted();
    let (attest, signature) = appliance.tpm.quote(&appliance.pcrs(), &NONCE);
    let kinds = [(0, attest), (1, signature), (2, appliance.tpm.public())];
    let mut seeds = vec![
        ("eventlog", "honest", appliance.firmware.concat()),
        ("userspace", "honest", appliance.userspace.concat().into_bytes()),
        ("evidence", "honest", serde_json::to_vec(&appliance.evidence(NONCE))?),
    ];
    for ((kind, bytes), name) in kinds.into_iter().zip(["attest", "signature", "public"]) {
        seeds.push(("quote", name, [&[kind], &bytes[..]].concat()));
    }
    for (target, name, bytes) in seeds {
        let folder = Path::new("corpus").join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
