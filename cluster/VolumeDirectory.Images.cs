using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

// Images: volumes whose content never changes again. The mark is set once and by a revision of the record, so that whoever reads
// the record knows it; front ends refuse changes by Export.ReadOnly, which stays set.
public sealed partial class VolumeDirectory
{
    /// <summary>Why what would change the content of a volume is refused: it is an image. Null when it is none.</summary>
    public static DirectoryFault? ImageFault(VolumeRecord volume) => !volume.IsImage ? null : new(
        IoStatus.Conflict, "volume-is-image", $"'{volume.Name}' is an image and never changes; make a volume from it: pfcli clone_volume -v {volume.Name} -c NAME");

    private static VolumeRecord AsImage(VolumeRecord volume) => volume with { IsImage = true, Export = volume.Export with { ReadOnly = true } };

    /// <summary>Why an image cannot be changed so, or null. Its name, its description and who is offered it may change.</summary>
    private static DirectoryFault? ImageFault(VolumeRecord old, ChangeVolume change)
    {
        if (change.Image == false && old.IsImage) return ImageFault(old)! with { Field = "image" };
        if (change.SizeBytes is { } size && size != old.SizeBytes && ImageFault(old) is { } fixedSize) return fixedSize with { Field = "sizeBytes" };
        bool isOpened = change.Export is { } export && (!export.ReadOnly || (export.Thick && !old.Export.Thick));
        return isOpened && ImageFault(old) is { } closed ? closed with { Field = "export" } : null;
    }
}
