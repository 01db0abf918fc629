//! Where we are attached.

/// Makes the steps of a family: functions that the kernel's verifier reads one by one, and that it lets
/// answer with any number.
macro_rules! steps {
    (
        $packet:ident of $context:ident by $raw:ty, $family:ty:
        $($name:ident = $function:ident($($argument:ident: $type:ty),*),)+
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
