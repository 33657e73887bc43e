namespace BlockServer.Core;

/// <summary>What became of an append.</summary>
public enum AppendOutcome
{
    /// <summary>The bytes lie at the answered offset and are durable; a repeat of an append that has landed says the same.</summary>
    Done = 0,

    /// <summary>No bytes, more than <see cref="Units.RequestBytesMax"/>, or a client without a sequence number.</summary>
    Invalid,

    /// <summary>There is no such append-only volume.</summary>
    NotFound,

    /// <summary>The volume is sealed: its content never changes again.</summary>
    Sealed,

    /// <summary>The bytes do not fit under the volume's maximum size.</summary>
    Full,

    /// <summary>The sequence number is older than what is remembered of the client: whether it landed cannot be told.</summary>
    StaleSequence,

    /// <summary>The client is not known and its number is not the first one: it was forgotten for others, or its appends were
    /// undone by a rollback. Whether it landed cannot be told.</summary>
    UnknownClient,

    /// <summary>The number is known, but what landed under it has another length.</summary>
    Differs,

    /// <summary>No room on the store.</summary>
    NoSpace,

    /// <summary>A block at the end of the volume cannot be read.</summary>
    Damaged,

    /// <summary>The store stopped or is closing; the append may be repeated when it is back.</summary>
    Unavailable,

    /// <summary>The volume has another home by now; nothing landed: ask there.</summary>
    Moved,
}

/// <summary>Answer to an append.</summary>
/// <param name="Outcome">What became of it.</param>
/// <param name="OffsetBytes">Where the bytes begin; only when done.</param>
/// <param name="IsRepeat">They had landed before, by an earlier request with the same number.</param>
public readonly record struct AppendResult(AppendOutcome Outcome, ulong OffsetBytes = 0, bool IsRepeat = false);

/// <summary>Who appends, and the how-manieth of his appends it is: makes a repeated request land once.</summary>
/// <param name="Client">Identity that the client drew; empty: a repeat is not recognised.</param>
/// <param name="Sequence">1 for the client's first append, then rising; gaps are allowed.</param>
public readonly record struct AppendKey(Guid Client, ulong Sequence);

/// <summary>What is known of an append-only volume.</summary>
/// <param name="LengthBytes">Durable length.</param>
/// <param name="SizeBytesMax">Its length never exceeds this.</param>
/// <param name="IsSealed">It never changes again.</param>
/// <param name="Clients">Clients whose appends are remembered.</param>
public readonly record struct AppendInfo(ulong LengthBytes, ulong SizeBytesMax, bool IsSealed, int Clients);

/// <summary>
/// A store's append-only volumes (engine B1.10): bytes are added at the end, in order, and never change. Lives on the
/// store's loop. Such a volume is created as any other, with <see cref="VolumeHead.IsAppendOnly"/>; its devices are read-only
/// and end at the length, rounded up to a block and zero behind the length.
/// </summary>
public interface IAppendStore
{
    /// <summary>Appends: all of <paramref name="bytes"/> or nothing, durable when done. The bytes are borrowed until the
    /// answer. With a client an append that has landed already is answered, not repeated; the last 16 of each client are
    /// remembered, over restarts too. One that is refused takes with it those that wait behind it in the same order and have not
    /// landed: they are refused for the same reason, so that of what was asked for together a prefix lands and no hole is left.</summary>
    /// <param name="volumeId">The volume.</param>
    /// <param name="key">Who appends.</param>
    /// <param name="bytes">1 byte to <see cref="Units.RequestBytesMax"/>.</param>
    /// <param name="order">Names the order of appends without a client; those of a client with rising numbers are in one order anyway.</param>
    ValueTask<AppendResult> AppendAsync(uint volumeId, AppendKey key, ReadOnlyMemory<byte> bytes, Guid order = default);

    /// <summary>Length and state, or null when there is no such append-only volume.</summary>
    AppendInfo? AppendInfoOf(uint volumeId);

    /// <summary>Answers when the durable length is above <paramref name="lengthBytes"/>, the volume is sealed or gone, the
    /// store stopped, or <paramref name="nanosMax"/> have passed.</summary>
    ValueTask<AppendInfo?> WaitForAppendAsync(uint volumeId, ulong lengthBytes, ulong nanosMax);
}
