using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>What opening a store gave: the store, or why it refused.</summary>
public readonly record struct Opened(IStore? Store, string? Refusal);

/// <summary>How the simulation makes and opens the kind of store under test.</summary>
public abstract class StoreDriver
{
    /// <summary>Medium that the simulation gives it.</summary>
    public abstract ulong MediumBytes { get; }

    /// <summary>A small one, on which space runs short.</summary>
    public virtual ulong MediumBytesMin => MediumBytes;

    /// <summary>What to add to the command line to get this driver, with a leading space.</summary>
    public virtual string Arguments => "";

    /// <summary>Makes an empty store on the medium; null when done, else the reason.
    /// <paramref name="ring"/>: size of the log, 0 (smallest) to 3.</summary>
    public abstract ValueTask<string?> FormatAsync(ILoop loop, IFile file, int ring);

    /// <summary>Counts every page and block of a store at rest; what contradicts S2 or S9, or null.</summary>
    public virtual ValueTask<string?> AuditAsync(IStore store) => new((string?)null);

    /// <summary>Opens it, recovering as needed; <paramref name="log"/> is a second view of the medium for the log, or null. With
    /// <paramref name="awaitsPromises"/> what grows by itself waits until promises are made.</summary>
    public abstract ValueTask<Opened> OpenAsync(ILoop loop, IFile file, IFile? log, Durability durability, bool awaitsPromises = false);
}
