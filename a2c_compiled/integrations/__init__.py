"""Speed for the users of other libraries, in one call. Each module needs the library that it is named after."""
