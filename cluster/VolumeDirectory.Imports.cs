using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

// Volumes that a stream comes into: until it has come they are what nobody should see.
public sealed partial class VolumeDirectory
{
    /// <summary>As <see cref="CreateAsync(CreateVolume)"/>; nobody may attach the volume until its import is
    /// <see cref="SetImportAsync">said</see> to have ended.</summary>
    public Task<DirectoryResult> CreateForImportAsync(CreateVolume request, ImportRecord import) => CreateAsync(request, import);

    /// <summary>Replaces what a volume's record says about its import; null ends it. <paramref name="id"/>: only of this volume.
    /// <paramref name="onlyFrom"/>: only while the record says this.</summary>
    public Task<DirectoryResult> SetImportAsync(uint id, ImportRecord? onlyFrom, ImportRecord? import) => ChangeAloneAsync(async () =>
    {
        if (_table.FindById(id) is not { } old) return new DirectoryFault(IoStatus.NotFound, "no-such-volume", "the volume was deleted meanwhile");
        if (old.Import != onlyFrom) return new DirectoryFault(IoStatus.Conflict, "changed-meanwhile", "another import of the volume has begun or ended");
        if (import is not null && MoveFault(old) is { } moving) return moving;
        if (import is { Base: not null } && ImageFault(old) is { } image) return image;
        VolumeRecord wanted = old with { Import = import };
        if (import is null && onlyFrom is { Base: null, IsImage: true }) wanted = AsImage(wanted); // a full stream that is given up goes with its volume
        MetaResult written = await WriteAsync(wanted);
        return written.Outcome == MetaOutcome.Committed ? Show(wanted with { Revision = written.Revision }) : MetaCommit.FaultOf(written.Outcome);
    });

    /// <summary>Gives a volume another size for its import; what lies beyond a smaller one goes.</summary>
    public Task<DirectoryResult> ResizeForImportAsync(uint id, ulong sizeBytes) => ChangeAloneAsync(
        () => _table.FindById(id) is { } volume
            ? ChangeAloneAsync(volume.Name, new ChangeVolume(SizeBytes: sizeBytes, Force: true), isImport: true)
            : Task.FromResult<DirectoryResult>(new DirectoryFault(IoStatus.NotFound, "no-such-volume", "the volume was deleted meanwhile")));

    /// <summary>Deletes a volume that an import was to fill.</summary>
    public Task<DirectoryResult> DeleteImportAsync(uint id) => ChangeAloneAsync(
        () => _table.FindById(id) is { Import: { Base: null } } volume
            ? DeleteAloneAsync(volume.Name, id, null, evenIfAbsent: true, withSnapshots: true)
            : Task.FromResult<DirectoryResult>(new DirectoryFault(IoStatus.NotFound, "no-such-volume", "the volume was deleted meanwhile")));

    /// <summary>Why a volume cannot be changed or attached: something comes into it. Null when nothing does.</summary>
    public static DirectoryFault? ImportFault(VolumeRecord volume) => volume.IsPopulating ? PopulationFault(volume) : volume.Import is not { IsActive: true } import ? null : new(
        IoStatus.Conflict, "volume-initializing",
        import.Base is null
            ? $"'{volume.Name}' is being filled and not whole yet; wait, go on with pfcli import_image --resume, or delete it"
            : $"an increment comes into '{volume.Name}'; wait until it has ended");
}
