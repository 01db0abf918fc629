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

pub mod bind;
mod carrier;
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
