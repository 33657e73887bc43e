using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

/// <summary>What there is to attach to. Called on the loop of the handshake.</summary>
public interface INbdExports
{
    /// <summary>The export of that name ("" asks for the default one) as far as <paramref name="identity"/>, the subject
    /// of the client's certificate or else <see cref="NbdOptions.DefaultIdentity"/>, may use it; null otherwise.</summary>
    ValueTask<NbdExport?> FindAsync(string name, string? identity);

    /// <summary>Why something of that name, which exists, cannot be attached now; null when there is nothing to say.</summary>
    string? WhyNot(string name, string? identity) => null;

    /// <summary>What LIST shows to <paramref name="identity"/>.</summary>
    IReadOnlyList<NbdListing> List(string? identity);
}

/// <summary>One line of a list of exports.</summary>
public readonly record struct NbdListing(string Name, string Description);

/// <summary>A metadata context that can be chosen.</summary>
/// <param name="Name">With its namespace, as on the wire.</param>
/// <param name="Tag">The daemon's own: what it stood for when it was listed.</param>
public sealed record NbdContext(string Name, object? Tag)
{
    /// <summary>The one that every export has, described by its device's map.</summary>
    public static NbdContext BaseAllocation { get; } = new(NbdWire.BaseAllocation, null);
}

/// <summary>A stretch of an export in a metadata context; what the flags mean is the context's.</summary>
public readonly record struct NbdStatusRun(ulong LengthBytes, uint Flags);

/// <summary>Metadata contexts of an export besides base:allocation.</summary>
public interface INbdContexts
{
    /// <summary>All of them. On the loop of the handshake.</summary>
    ValueTask<IReadOnlyList<NbdContext>> ListAsync();

    /// <summary>Describes a range from its start on, in at most <paramref name="runsMax"/> runs that are added to
    /// <paramref name="runs"/>: at least one, none of length 0, clipped to the range. On the loop of the export's device. Answers
    /// NotFound when what the context stood for is gone.</summary>
    ValueTask<IoStatus> MapAsync(NbdContext context, ulong offsetBytes, ulong lengthBytes, int runsMax, List<NbdStatusRun> runs);
}

/// <summary>One thing to attach to.</summary>
public sealed class NbdExport
{
    /// <summary>Canonical name.</summary>
    public required string Name { get; init; }

    /// <summary>For people; may be empty.</summary>
    public string Description { get; init; } = "";

    /// <summary>The disk; touched by the transmission phase only, on its loop.</summary>
    public required IBlockDevice Device { get; init; }

    /// <summary>Size to announce.</summary>
    public required ulong SizeBytes { get; init; }

    /// <summary>Changes are refused with EPERM.</summary>
    public bool IsReadOnly { get; init; }

    /// <summary>With TLS optional: not without TLS.</summary>
    public bool RequiresTls { get; init; }

    /// <summary>A flush on one connection covers the answered writes of all.</summary>
    public bool CanMultiConn { get; init; } = true;

    /// <summary>On a rotating disk.</summary>
    public bool IsRotational { get; init; }

    /// <summary>Told about every finished request, or null.</summary>
    public INbdMeter? Meter { get; init; }

    /// <summary>The volume's door, which every request passes that asks its device for something; null: none. Lives on the loop of
    /// the device.</summary>
    public VolumeAdmission? Admission { get; init; }

    /// <summary>Metadata contexts besides base:allocation, or null.</summary>
    public INbdContexts? Contexts { get; init; }

    /// <summary>The daemon's own.</summary>
    public object? Tag { get; init; }
}

/// <summary>Counts requests of a volume. Called on the volume's loop; must not allocate.</summary>
public interface INbdMeter
{
    /// <summary>A request's reply was queued, <paramref name="durationNanos"/> after its header was read;
    /// <paramref name="queuedNanos"/> of that it waited to be let in.</summary>
    void OnRequest(NbdCommand command, ulong bytes, ulong durationNanos, ulong queuedNanos, NbdError error);
}

/// <summary>What a handshake agreed on; everything that the transmission phase needs.</summary>
public sealed class NbdNegotiated
{
    /// <summary>The connection, after TLS if there was any.</summary>
    public required IConnection Connection { get; init; }

    /// <summary>What was chosen.</summary>
    public required NbdExport Export { get; init; }

    /// <summary>Subject of the client's certificate, or else <see cref="NbdOptions.DefaultIdentity"/>.</summary>
    public string? Identity { get; init; }

    /// <summary>The connection is encrypted.</summary>
    public bool IsTls { get; init; }

    /// <summary>Headers in use.</summary>
    public NbdReplyMode Mode { get; init; }

    /// <summary>What BLOCK_STATUS is answered in; the id of the first is <see cref="NbdWire.FirstContextId"/>, and so on.</summary>
    public IReadOnlyList<NbdContext> Contexts { get; init; } = [];

    /// <summary>Bytes of the transmission phase that were received already.</summary>
    public byte[] Leftover { get; init; } = [];
}

/// <summary>A session's figures; read on its loop.</summary>
public sealed class NbdCounters
{
    /// <summary>READs answered.</summary>
    public ulong Reads { get; internal set; }

    /// <summary>Bytes of answered READs.</summary>
    public ulong ReadBytes { get; internal set; }

    /// <summary>WRITEs answered.</summary>
    public ulong Writes { get; internal set; }

    /// <summary>Bytes of answered WRITEs.</summary>
    public ulong WrittenBytes { get; internal set; }

    /// <summary>Requests answered with an error.</summary>
    public ulong Errors { get; internal set; }

    /// <summary>Requests between header and reply.</summary>
    public int InFlight { get; internal set; }
}
