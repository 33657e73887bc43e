using BlockServer.Core;
using BlockServer.Storage;

namespace BlockServer.Tests.Simulation;

/// <summary>Drives the product's store: small, so that the log laps and space runs short. The size of the ring is drawn, and
/// at every opening the RAM for metadata pages (all, or so few that they come and go), whether blocks are reused soon, and
/// whether extents are laid out anew, how soon and for how few cuts.</summary>
public sealed class StorageDriver(BrokenRules broken = BrokenRules.None) : StoreDriver
{
    /// <inheritdoc/>
    public override string Arguments => broken == BrokenRules.None ? "" : $" --broken {broken}";

    /// <inheritdoc/>
    public override ulong MediumBytes => 24 * Units.MiB;

    /// <inheritdoc/>
    public override ulong MediumBytesMin => 7 * Units.MiB;

    /// <inheritdoc/>
    public override ValueTask<string?> FormatAsync(ILoop loop, IFile file, int ring) =>
        Store.FormatAsync(loop, file, new StoreOptions
        {
            SlotFraction = 0.04, // room for snapshots
            RingBytes = (256 * Units.KiB) << ring,
            StoreUuid = loop.Random.NextGuid(),
            Force = true,
        });

    /// <inheritdoc/>
    public override async ValueTask<Opened> OpenAsync(ILoop loop, IFile file, IFile? log, Durability durability, bool awaitsPromises = false)
    {
        StoreOptions options = DrawRelayout(loop.Random, new StoreOptions
        {
            Durability = durability,
            AwaitsPromises = awaitsPromises,
            BrokenRules = broken,
            MetadataBudgetBytes = DrawBudget(loop.Random),
            ReusesSoon = loop.Random.NextChance(0.5),
        });
        // The small appends of the simulation would hardly ever be written while others are flushed: in half of the lives all are.
        if (options.ReusesSoon) options = options with { AppendOverlapBytes = 0 };
        StoreOpenResult result = await Store.OpenAsync(loop, file, log, options);
        return new Opened(result.Store, result.Refusal);
    }

    /// <inheritdoc/>
    public override ValueTask<string?> AuditAsync(IStore store) => ((Store)store).AuditAsync();

    private static StoreOptions DrawRelayout(IRandom random, StoreOptions options) =>
        !random.NextChance(0.7) ? options : options with
        {
            RelayoutBytesPerSecond = Units.GiB << random.NextBelow(8),
            RelayoutColdNanos = random.NextBelow(2UL) * random.NextBelow(3_000_000UL),
            RelayoutCutsMin = 1 + random.NextBelow(6),
            RelayoutBlocksPerCut = Units.BlocksPerExtent,
        };

    private static ulong DrawBudget(IRandom random) =>
        random.NextChance(0.3) ? 64 * Units.MiB : (1 + random.NextBelow(8UL)) * MetadataPage.EntriesBytes;
}
