//! Types that cross the kernel boundary, and the pure logic that both sides run.
#![cfg_attr(not(feature = "std"), no_std)]
