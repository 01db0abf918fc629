//! How a type proves that it may cross the kernel boundary.

use core::{mem::MaybeUninit, ptr, slice};

/// A type whose bytes are its value: no padding, no invalid bit pattern, no pointer.
///
/// # Safety
///
/// Every byte of the type must be initialised in every value of it, and every bit pattern must be
/// a valid value. The [`abi`] macro checks both for structs of such types.
pub unsafe trait Abi: Copy + 'static {
    /// Its bytes, in memory order.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the trait promises that all bytes are initialised; the length is the type's.
        unsafe { slice::from_raw_parts(ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The value with these bytes; `None` if their number is wrong.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let mut value = MaybeUninit::<Self>::uninit();
        // SAFETY: the lengths are equal, the areas do not overlap, and the trait promises that
        // every bit pattern is a value.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), bytes.len());
            Some(value.assume_init())
        }
    }

    /// The value whose bytes are all zero.
    fn zeroed() -> Self {
        // SAFETY: the trait promises that every bit pattern is a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

// SAFETY: integers have no padding and no invalid bit pattern; arrays add none.
unsafe impl Abi for u8 {}
// SAFETY: as above.
unsafe impl Abi for u16 {}
// SAFETY: as above.
unsafe impl Abi for u32 {}
// SAFETY: as above.
unsafe impl Abi for u64 {}
// SAFETY: as above.
unsafe impl<T: Abi, const N: usize> Abi for [T; N] {}

/// Declares a struct that crosses the kernel boundary.
///
/// `struct Name` is one layout; `struct Name<A>` is one for each address family. Compilation fails
/// if a field is not [`Abi`] itself or if the compiler would pad.
macro_rules! abi {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)+ }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+, "hidden padding");
        const _: fn() = || {
            fn is_abi<T: $crate::abi::Abi>() {}
            $(is_abi::<$type>();)+
        };
        // SAFETY: all fields are `Abi`, and the assertion above rules out padding.
        unsafe impl $crate::abi::Abi for $name {}
    };
    (
        $(#[$meta:meta])*
        pub struct $name:ident<A> { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(C)]
        pub struct $name<A> { $($(#[$field_meta])* pub $field: $type,)+ }

        impl<A: $crate::abi::Address> $name<A> {
            const NO_PADDING: () =
                assert!(size_of::<Self>() == 0 $(+ size_of::<$type>())+, "hidden padding");
            #[allow(dead_code, reason = "checked by the compiler, never called")]
            fn fields_are_abi() {
                fn is_abi<T: $crate::abi::Abi>() {}
                $(is_abi::<$type>();)+
            }
        }
        const _: () = $name::<$crate::abi::Ipv4>::NO_PADDING;
        const _: () = $name::<$crate::abi::Ipv6>::NO_PADDING;
        // SAFETY: all fields are `Abi`, and the two constants above rule out padding for the only
        // two types that implement `Address`.
        unsafe impl<A: $crate::abi::Address> $crate::abi::Abi for $name<A> {}
    };
}

/// Declares a set of 16 bits; the bits themselves are constants of the type.
macro_rules! flags {
    ($(#[$meta:meta])* pub struct $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(transparent)]
        pub struct $name(pub u16);

        // SAFETY: transparent over an integer.
        unsafe impl $crate::abi::Abi for $name {}

        impl $name {
            /// No bit.
            pub const NONE: Self = Self(0);

            /// Are all bits of `other` set here?
            #[inline(always)]
            #[must_use]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits of both.
            #[inline(always)]
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The bits that `other` has not.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
        }
    };
}
pub(super) use {abi, flags};
