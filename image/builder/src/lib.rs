//! Builds the signed appliance image.
