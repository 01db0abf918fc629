//! Where we are attached.

/// Declares the steps of a hook, and makes them for each family: functions that the kernel's verifier reads one
/// by one, and that it lets answer with any number.
macro_rules! steps {
    (
        $packet:ident of $context:ident by $raw:ty:
        $($(#[$meta:meta])*
        $name:ident($($argument:ident: $type:ty),*) = $v4:ident, $v6:ident;)+
    ) => {
        /// The steps for one family.
        trait Steps {
            $($(#[$meta])*
            fn $name(ctx: *mut $raw $(, $argument: $type)*) -> i32;)+
        }
        steps!(@of Ipv4, $packet, $context, $raw: $($name($($argument: $type),*) = $v4;)+);
        steps!(@of Ipv6, $packet, $context, $raw: $($name($($argument: $type),*) = $v6;)+);
    };
    (
        @of $family:ty, $packet:ident, $context:ident, $raw:ty:
        $($name:ident($($argument:ident: $type:ty),*) = $function:ident;)+
    ) => {
        $(#[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $function(ctx: *mut $raw $(, $argument: $type)*) -> i32 {
            // The compiler drops an argument that is not used, and the verifier asks for a context.
            // SAFETY: every context begins with a word of 32 bits.
            let _ = unsafe { ctx.cast::<u32>().read_volatile() };
            $name::<$family>($packet::new($context::new(ctx)) $(, $argument)*)
        })+

        impl Steps for $family {
            $(#[inline(always)]
            fn $name(ctx: *mut $raw $(, $argument: $type)*) -> i32 {
                $function(ctx $(, $argument)*)
            })+
        }
    };
}

use lb_common::crc32c;

pub mod bind;
mod frame;
pub mod ip_device;
mod peers;
mod route;
mod skb;
pub mod sock_addr;
pub mod stale;
pub mod sweep;
mod tables;
pub mod tc;
pub mod xdp;

/// See [`crc32c::change`]: once in a program, and read once by the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_crc_change(first_word: u32, length: u32) -> u32 {
    crc32c::change(first_word, length as u16)
}
