// Compares types of cuda.h with what the Rust side says of them, while a file is compiled. Nothing here is run.
#pragma once

#include <cstddef>
#include <type_traits>

#include <cuda.h>

// What the Rust side says: an integer, a floating-point number, bytes, a structure, a pointer, something that nobody looks
// into. Looser ones: a word is a pointer or an integer of 8 bytes, OutPointer may stand for a pointer to void, and
// AnyPointer for one to a constant as well.
template <std::size_t bytes, bool negative> struct Int {};
template <std::size_t bytes> struct Float {};
template <std::size_t bytes> struct Bytes {};
template <class Theirs> struct Structure {};
template <class To> struct Pointer {};
template <class To> struct ConstPointer {};
template <class To> struct OutPointer {};
template <class To> struct AnyPointer {};
struct Opaque {};
struct Word {};

template <class T> struct tag {};

template <class T, class = void> struct is_complete : std::false_type {};
template <class T> struct is_complete<T, std::void_t<decltype(sizeof(T))>> : std::true_type {};

// An enumeration is as good as an integer of its size: C gives it a sign by its values.
template <class T, std::size_t bytes, bool negative> constexpr bool fits(tag<T>, tag<Int<bytes, negative>>) {
    if constexpr (std::is_enum_v<T>) return sizeof(T) == bytes;
    else if constexpr (std::is_integral_v<T>) return sizeof(T) == bytes && std::is_signed_v<T> == negative;
    else return false;
}

template <class T, std::size_t bytes> constexpr bool fits(tag<T>, tag<Float<bytes>>) {
    if constexpr (std::is_floating_point_v<T>) return sizeof(T) == bytes;
    else return false;
}

template <class T, std::size_t bytes> constexpr bool fits(tag<T>, tag<Bytes<bytes>>) {
    if constexpr (is_complete<T>::value) return std::is_class_v<T> && sizeof(T) == bytes;
    else return false;
}

template <class T, class Theirs> constexpr bool fits(tag<T>, tag<Structure<Theirs>>) {
    return std::is_same_v<T, Theirs>;
}

template <class T> constexpr bool fits(tag<T>, tag<Opaque>) {
    return std::is_void_v<T> || (std::is_class_v<T> && !is_complete<T>::value);
}

template <class T> constexpr bool fits(tag<T>, tag<Word>) {
    if constexpr (std::is_pointer_v<T> || std::is_integral_v<T>) return sizeof(T) == 8;
    else return false;
}

template <class T, class To> constexpr bool fits(tag<T>, tag<Pointer<To>>) {
    if constexpr (std::is_pointer_v<T>) {
        using Target = std::remove_pointer_t<T>;
        return !std::is_const_v<Target> && fits(tag<Target>{}, tag<To>{});
    } else return false;
}

template <class T, class To> constexpr bool fits(tag<T>, tag<ConstPointer<To>>) {
    if constexpr (std::is_pointer_v<T>) {
        using Target = std::remove_pointer_t<T>;
        return std::is_const_v<Target> && fits(tag<std::remove_const_t<Target>>{}, tag<To>{});
    } else return false;
}

template <class T, class To> constexpr bool fits(tag<T>, tag<OutPointer<To>>) {
    return std::is_same_v<T, void *> || fits(tag<T>{}, tag<Pointer<To>>{});
}

template <class T, class To> constexpr bool fits(tag<T>, tag<AnyPointer<To>>) {
    if constexpr (std::is_pointer_v<T>) {
        using Target = std::remove_const_t<std::remove_pointer_t<T>>;
        return std::is_void_v<Target> || fits(tag<Target>{}, tag<To>{});
    } else return false;
}

template <class... Ours> struct takes {
    template <class Result, class... Theirs> static constexpr bool of(Result (*)(Theirs...)) {
        if constexpr (sizeof...(Ours) == sizeof...(Theirs))
            return std::is_same_v<Result, CUresult> && sizeof(Result) == 4 && (fits(tag<Theirs>{}, tag<Ours>{}) && ...);
        else return false;
    }
};

// A function as it is called. The name is the one that the library exports; the header's macros lead to it.
#define FUNCTION(symbol, ...)                                                                                             \
    static_assert(takes<__VA_ARGS__>::of(static_cast<decltype(&symbol)>(nullptr)), #symbol " is of another type");

#define NUMBER(name, value) static_assert(static_cast<long long>(name) == (value), #name " is another number");

#define STRUCTURE(name, bytes, alignment)                                                                                 \
    static_assert(sizeof(name) == (bytes) && alignof(name) == (alignment), #name " is of another size or alignment");

// Neighbouring fields from the first to the last.
#define FIELD(structure, first, last, place, bytes)                                                                       \
    static_assert(offsetof(structure, first) == (place), #structure "::" #first " is elsewhere");                         \
    static_assert(offsetof(structure, last) + sizeof(static_cast<structure *>(nullptr)->last) == (place) + (bytes),       \
                  #structure "::" #last " ends elsewhere");
