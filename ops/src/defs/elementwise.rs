//! How the tables of elementwise ops become code.

/// Expands a table into its enum, the list of all functions, their rows, and a builder method of each.
///
/// A line of the table is a doc comment, the variant, the builder method and the row. `fn` says once
/// what every method takes, and how it appends the function that it is for.
macro_rules! elementwise {
    (
        $(#[$enum_doc:meta])*
        enum $table:ident;
        fn $args:tt |$function:ident| $append:expr;
        $($(#[$doc:meta])* $variant:ident $method:ident $row:expr;)*
    ) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $table { $($(#[$doc])* $variant),* }

        impl $table {
            /// Every function, in table order.
            pub const ALL: &[$table] = &[$($table::$variant),*];

            fn row(self) -> &'static Row {
                match self { $($table::$variant => const { &$row }),* }
            }
        }

        impl Builder {
            $(
                $(#[$doc])*
                pub fn $method $args -> Result<ValueId, Error> {
                    let $function = $table::$variant;
                    $append
                }
            )*
        }
    };
}

pub(crate) use elementwise;
