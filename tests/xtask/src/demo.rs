//! `cargo xtask demo`.

use anyhow::Result;

use crate::material;
use crate::steps::{Steps, sh};
use crate::tree::Tree;

/// Prepares everything, then shows the appliance at work.
pub(crate) fn run(tree: &Tree, steps: &mut Steps) -> Result<()> {
    let material = material::prepare(tree, steps, &[])?;
    steps.show("demonstration", || {
        let mut command = tree.enter(material.binaries.join("casemate"));
        command.arg("demo");
        command.arg("--image").arg(&material.image).arg("--keys").arg(&material.keys);
        command.arg("--bundle").arg(&material.bundles.good);
        command.arg("--bundle-flipped").arg(&material.bundles.flipped_byte);
        command.arg("--bundle-one-signature").arg(&material.bundles.one_signature);
        command.arg("--verifier").arg(material.binaries.join("casemate-verify"));
        command.arg("--python").arg(&material.python);
        command.arg("--client").arg(tree.workspace().join("tests/system/clients/openai_chat.py"));
        sh(command.args(["--model", material::MODEL_ID]))
    })
}
