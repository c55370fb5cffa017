//! Reductions over the units of a cube: a tree in shared memory.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Below every score and logit; infinities are not to be had on every device.
pub const LOWEST: f32 = -1e30;

/// The largest value that a unit of the cube brings; every unit gets it. `units` is a power of two.
#[cube]
pub fn largest_of(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    together(value, shared, units, true)
}

/// The sum of what the units of the cube bring; every unit gets it. `units` is a power of two.
#[cube]
pub fn sum_of(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    together(value, shared, units, false)
}

#[cube]
fn together(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: usize, #[comptime] largest: bool) -> f32 {
    let unit = UNIT_POS_X as usize;
    // What was there before has been read by everyone.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut half = units.runtime() / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            let own = shared[unit];
            if comptime!(largest) {
                shared[unit] = select(other > own, other, own);
            } else {
                shared[unit] = own + other;
            }
        }
        half /= 2;
        sync_cube();
    }
    shared[0]
}

/// -1, 0 or 1.
#[cube]
pub fn sign(x: f32) -> f32 {
    select(x > 0.0, 1.0f32, select(x < 0.0, -1.0f32, 0.0f32))
}
