//! casemate: the integrator's one tool.

fn main() {}
